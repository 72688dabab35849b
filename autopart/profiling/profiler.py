"""The Profile of a program on a cluster: measured where a device of the kind is here, estimated where none is."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Sequence

import torch
from pydantic import TypeAdapter, ValidationError

from autopart import cache
from autopart.errors import DeviceError
from autopart.profiling.catalogue import kind_in
from autopart.profiling.estimate import corrected, estimate
from autopart.profiling.measure import measure
from autopart.profiling.timing import Clock
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster, Device, Kind
from autopart.schema.graph import Graph
from autopart.schema.profile import KindProfile, Profile

__all__ = ["profile"]

_ADAPTER = TypeAdapter(KindProfile)


def profile(
    program: Program,
    inputs: Sequence[torch.Tensor],
    cluster: Cluster,
    *,
    optimizer: str = "none",
    at_once: bool = False,
    refresh: bool = False,
    clock: Clock | None = None,
    progress: Progress = silent,
) -> Profile:
    """What every layer costs on every kind of the cluster.

    Measurements are kept in the cache by all that they depend on: the layers' operators and shapes, training and
    optimizer, the kind, the machine, the number of threads and torch's version.

    Args:
        program: of one micro-batch.
        inputs: the tensors of ``program.flatten_inputs``.
        cluster: whose kinds are wanted.
        optimizer: adamw, adam, sgd or none.
        at_once: the cluster's devices will compute at the same time, so emulated ones, each a core of this machine,
            are measured with the others' cores busy.
        refresh: measure anew what is in the cache.
        clock: seconds, for measuring on the processor; see ``measure``.
        progress: told about every run.

    Raises:
        DeviceError: a device is not here and its kind is not known, or nothing can be measured on one that is here.
    """
    graph = program.graph
    rows = []
    beside = max(0, sum(device.num_threads == 1 for device in cluster.devices) - 1) if at_once else 0
    for name in dict.fromkeys(device.kind for device in cluster.devices):
        device = next(device for device in cluster.devices if device.kind == name)
        if device.backend != "absent":
            rows.append(_measured(program, inputs, device, optimizer, beside, refresh, clock, progress))
        elif kind := kind_in(cluster, name):
            rows.append(_estimated(graph, kind, optimizer))
        else:
            raise DeviceError(f"{device.name} is not here and its kind {name!r} is not in the catalogue")
    rows = _improved(rows, graph, cluster, optimizer)
    return Profile(
        fingerprint=graph.fingerprint, training=graph.training, batch_size=graph.batch_size, kinds=tuple(rows)
    )


def _estimated(graph: Graph, kind: Kind, optimizer: str) -> KindProfile:
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return estimate(graph, kind, training=graph.training, optimizer=optimizer, tf32=tf32)


def _improved(rows: Sequence[KindProfile], graph: Graph, cluster: Cluster, optimizer: str) -> list[KindProfile]:
    """The estimates corrected by the first kind that is measured and in the catalogue too, if there is one."""
    for row in rows:
        known = kind_in(cluster, row.kind)
        if row.origin == "measured" and known:
            there = _estimated(graph, known, optimizer)
            return [corrected(one, row, there) if one.origin == "estimated" else one for one in rows]
    return list(rows)


def _measured(
    program: Program, inputs: Sequence[torch.Tensor], device: Device, optimizer: str, beside: int, refresh: bool,
    clock: Clock | None, progress: Progress,
) -> KindProfile:  # fmt: skip
    beside = beside if device.num_threads == 1 else 0
    key = _key(program, device, optimizer, beside)
    content = None if refresh else cache.read("layers", key)
    if content is not None:
        try:
            return _ADAPTER.validate_json(content)
        except ValidationError:
            warnings.warn(
                f"the cached times of {device.kind} are of another version of autopart; they are measured anew",
                stacklevel=2,
            )
    row = measure(
        program, inputs, device, optimizer=optimizer, num_busy_beside=beside, clock=clock, progress=progress
    )
    cache.write("layers", key, _ADAPTER.dump_json(row))
    return row


def _key(program: Program, device: Device, optimizer: str, beside: int) -> tuple[str, ...]:
    graph = program.graph
    layers = hashlib.sha256(" ".join(layer.signature for layer in graph.layers).encode()).hexdigest()
    return (
        "2", graph.fingerprint, layers, str(graph.training), optimizer, device.kind, str(device.num_threads),
        str(beside), platform.node(), platform.machine(), _processor(), torch.__version__,
    )  # fmt: skip


def _processor() -> str:
    """What identifies the hardware besides the machine's name."""
    if torch.cuda.is_available():
        return ",".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return platform.processor() or torch.backends.cpu.get_cpu_capability()
