"""The Profile of a program on a cluster: measured where a device of the kind is here, estimated where none is."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from pydantic import TypeAdapter, ValidationError

from autopart import cache, pastruns
from autopart.errors import DeviceError
from autopart.pace import clock_for
from autopart.profiling.devices.catalogue import kind, kind_in, kinds
from autopart.profiling.estimating.estimate import corrected, estimate
from autopart.profiling.learning import learned
from autopart.profiling.measuring.budget import Budget
from autopart.profiling.measuring.measure import measure
from autopart.profiling.measuring.passes import keep_passes, read_passes
from autopart.profiling.measuring.timeboxed import combined, measure_alone, shares
from autopart.profiling.measuring.timing import Clock, num_threads_set, own_stream
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster, Device, Kind
from autopart.schema.graph import Graph
from autopart.schema.job import StageDtype
from autopart.schema.profile import KindProfile, Profile
from autopart.stagedtypes import stage_dtype as best_dtype

__all__ = ["Live", "profile", "profile_graph"]

Live = Callable[[], tuple[Program, Sequence[torch.Tensor]]]
"""a program and the tensors of its ``flatten_inputs``, made when something must be measured"""
_ADAPTER = TypeAdapter(KindProfile)

STAND_IN = "cpu-generic-16c-avx2"
"""of the catalogue, for shares of layers on a device that is not in it: every processor"""

NUM_PASSES = 6
"""runs of the whole model that there must be time for: one to warm up, two that count, and reserve"""


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
    budget: Budget | None = None,
    stage_dtype: StageDtype = "keep",
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
        budget: time for all measuring.  Layers are measured alone, the most important first; then, if there is time,
            in runs of the whole model, as without a budget.  What there was no time for is estimated, scaled to the
            measured layers and noted in ``KindProfile.unmeasured``.
        stage_dtype: auto: on a kind without units for the model's half type in another (``KindProfile.dtype``); of a
            device that is here its kind has to be in the catalogue or the cluster for that.

    Raises:
        DeviceError: a device is not here and its kind is not known, or nothing can be measured on one that is here.
    """
    return profile_graph(
        program.graph, lambda: (program, inputs), cluster, optimizer=optimizer, at_once=at_once, refresh=refresh,
        clock=clock, progress=progress, budget=budget, stage_dtype=stage_dtype,
    )  # fmt: skip


def profile_graph(
    graph: Graph, live: Live, cluster: Cluster, *, optimizer: str = "none", at_once: bool = False,
    refresh: bool = False, clock: Clock | None = None, progress: Progress = silent, budget: Budget | None = None,
    stage_dtype: StageDtype = "keep",
) -> Profile:  # fmt: skip
    """As ``profile``, of a graph whose program is asked for only where something must be measured."""
    rows = []
    beside = max(0, sum(device.num_threads == 1 for device in cluster.devices) - 1) if at_once else 0
    for name in dict.fromkeys(device.kind for device in cluster.devices):
        device = next(device for device in cluster.devices if device.kind == name)
        known = kind_in(cluster, name)
        dtype = best_dtype(graph, known) if known and stage_dtype == "auto" else ""
        if device.backend != "absent":
            own = _in_type(live, dtype)
            row = _measured(graph, own, device, optimizer, beside, refresh, clock, progress, budget, dtype)
            rows.append(replace(row, dtype=dtype))
        elif known:
            rows.append(_estimated(graph, known, optimizer, dtype))
        else:
            raise DeviceError(f"{device.name} is not here and its kind {name!r} is not in the catalogue")
    rows = _improved(rows, graph, cluster, optimizer)
    return Profile(
        fingerprint=graph.fingerprint, training=graph.training, batch_size=graph.batch_size,
        kinds=_learned(rows, graph, optimizer, refresh),
    )  # fmt: skip


def _learned(rows: Sequence[KindProfile], graph: Graph, optimizer: str, refresh: bool) -> tuple[KindProfile, ...]:
    """The rows with what runs of plans taught; measuring anew forgets that too."""
    if refresh:
        pastruns.forget(graph.fingerprint, training=graph.training, optimizer=optimizer, batch_size=graph.batch_size)
        return tuple(rows)
    past = pastruns.recall(
        graph.fingerprint, training=graph.training, optimizer=optimizer, batch_size=graph.batch_size
    )
    return tuple(learned(row, graph, past) for row in rows)


def _in_type(live: Live, dtype: str) -> Live:
    """The program with layers that compute in a type; "": as it is."""
    if not dtype:
        return live

    def made() -> tuple[Program, Sequence[torch.Tensor]]:
        program, inputs = live()
        return replace(program, stage_dtype=dtype), inputs

    return made


def _estimated(graph: Graph, kind: Kind, optimizer: str, dtype: str = "") -> KindProfile:
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return estimate(graph, kind, training=graph.training, optimizer=optimizer, tf32=tf32, dtype=dtype)


def _improved(rows: Sequence[KindProfile], graph: Graph, cluster: Cluster, optimizer: str) -> list[KindProfile]:
    """The estimates corrected by the first kind that is measured and in the catalogue too, if there is one."""
    for row in rows:
        known = kind_in(cluster, row.kind)
        if row.origin == "measured" and known:
            there = _estimated(graph, known, optimizer, row.dtype)
            return [corrected(one, row, there) if one.origin == "estimated" else one for one in rows]
    return list(rows)


def _measured(
    graph: Graph, live: Live, device: Device, optimizer: str, beside: int, refresh: bool,
    clock: Clock | None, progress: Progress, budget: Budget | None, dtype: str,
) -> KindProfile:  # fmt: skip
    beside = beside if device.num_threads == 1 else 0
    key = (*_key(graph, device, optimizer, beside), *([dtype] if dtype else []))
    row = None if refresh else _read(key, device)
    if row is not None and not (budget and row.unmeasured):
        return row
    program, inputs = live()
    if budget is not None:
        row = _boxed(program, inputs, device, optimizer, key, refresh, clock, progress, budget)
        if row.unmeasured or not budget.allows(NUM_PASSES * _step_seconds(row)):
            cache.write("layers", key, _ADAPTER.dump_json(row))
            return row
    row = measure(
        program, inputs, device, optimizer=optimizer, num_busy_beside=beside, clock=clock, progress=progress,
        earlier=() if refresh else read_passes(key, len(program.graph.layers)),
        keep=lambda passes: keep_passes(key, passes),
    )  # fmt: skip
    cache.write("layers", key, _ADAPTER.dump_json(row))
    keep_passes(key, ())
    return row


def _read(key: Sequence[str], device: Device) -> KindProfile | None:
    content = cache.read("layers", key)
    if content is None:
        return None
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError:
        warnings.warn(
            f"the cached times of {device.kind} are of another version of autopart; they are measured anew",
            stacklevel=2,
        )
        return None


def _boxed(
    program: Program, inputs: Sequence[torch.Tensor], device: Device, optimizer: str, key: tuple[str, ...],
    refresh: bool, clock: Clock | None, progress: Progress, budget: Budget,
) -> KindProfile:  # fmt: skip
    """As many layers as there is time for, each alone, the most important first."""
    stand_in = next((known for known in kinds() if known.name == device.kind), None) or kind(STAND_IN)
    guess = _estimated(program.graph, stand_in, optimizer)
    if stand_in.name != device.kind:
        guess = replace(guess, basis=f"{guess.basis}; of {stand_in.name}, which stands in for {device.kind}")
    target = torch.device(device.torch_device or "cpu")
    with num_threads_set(device.num_threads), own_stream(target):
        found = measure_alone(
            program, inputs, device, tuple(shares(program, guess)), optimizer=optimizer,
            clock=clock or clock_for(device.num_threads), in_time=lambda: budget.allows(0.0), key=key,
            progress=progress, refresh=refresh,
        )  # fmt: skip
    return combined(program, guess, found, device)


def _step_seconds(row: KindProfile) -> float:
    return sum(row.forward_seconds) + sum(row.backward_seconds) + sum(row.optimizer_seconds)


def _key(graph: Graph, device: Device, optimizer: str, beside: int) -> tuple[str, ...]:
    layers = hashlib.sha256(" ".join(layer.signature for layer in graph.layers).encode()).hexdigest()
    return (
        "3", graph.fingerprint, layers, str(graph.training), optimizer, device.kind, str(device.num_threads),
        str(beside), platform.node(), platform.machine(), _processor(), torch.__version__,
    )  # fmt: skip


def _processor() -> str:
    """What identifies the hardware besides the machine's name."""
    if torch.cuda.is_available():
        return ",".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return platform.processor() or torch.backends.cpu.get_cpu_capability()
