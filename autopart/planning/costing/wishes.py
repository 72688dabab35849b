"""What the user wishes of single layers: pinned to a device, kept off one, kept together.

A wish names a layer, or what stands above it: ``transformer.h.3`` means all layers under it too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from autopart.errors import UsageError
from autopart.planning.costing.groups import Group
from autopart.schema.device import Cluster
from autopart.schema.graph import Graph
from autopart.schema.job import Job

__all__ = ["KNOW_WISHES", "apart_devices", "check_wishes", "forbidden_layers", "layers_named", "wished_cuts"]

KNOW_WISHES = ("optimal", "chain-dp")
"""methods that keep them"""


def layers_named(graph: Graph, name: str) -> tuple[int, ...]:
    """Indices of the layers that a name stands for."""
    return tuple(
        index for index, layer in enumerate(graph.layers) if layer.name == name or layer.name.startswith(f"{name}.")
    )


def check_wishes(graph: Graph, cluster: Cluster, job: Job) -> None:
    """Refuse wishes of layers or devices that are not there, and those that the method cannot keep.

    Raises:
        UsageError: a name is unknown, or the method is one of the simpler ones.
    """
    if (job.pins or job.forbidden or job.together) and job.method not in KNOW_WISHES:
        raise UsageError(
            f"--method {job.method} knows nothing of --pin, --forbid and --together; leave them out, or use --method "
            f"{' or '.join(KNOW_WISHES)}"
        )
    known = {device.name for device in cluster.devices}
    for name, device in (*job.pins, *job.forbidden):
        if device not in known:
            raise UsageError(f"there is no device {device!r} for {name}; the devices are {', '.join(sorted(known))}")
    for name in (*(name for name, _ in (*job.pins, *job.forbidden)), *(n for names in job.together for n in names)):
        if not layers_named(graph, name):
            raise UsageError(f"there is no layer {name!r}; `autopart trace` lists the layers' names")


def apart_devices(job: Job, cluster: Cluster) -> frozenset[str]:
    """Devices that wishes name: they are not interchangeable with their like."""
    return frozenset(device for _, device in (*job.pins, *job.forbidden))


def wished_cuts(graph: Graph, job: Job) -> Graph:
    """The graph without the legal cuts between layers that are to stay together."""
    spans = [
        sorted(index for name in names for index in layers_named(graph, name)) for names in job.together
    ]
    cuts = tuple(
        cut for cut in graph.legal_cuts if not any(span and span[0] < cut <= span[-1] for span in spans)
    )
    return graph if cuts == graph.legal_cuts else replace(graph, legal_cuts=cuts)


def forbidden_layers(graph: Graph, groups: tuple[Group, ...], job: Job) -> npt.NDArray[np.bool_]:
    """Entry [g, l]: whether layer l must not run on group g; devices of wishes have groups of their own."""
    banned = np.zeros((len(groups), len(graph.layers)), dtype=np.bool_)
    number = {device.name: g for g, group in enumerate(groups) for device in group.devices}
    for name, device in job.forbidden:
        banned[number[device], list(layers_named(graph, name))] = True
    for name, device in job.pins:
        others = [g for g in range(len(groups)) if g != number[device]]
        banned[np.ix_(others, list(layers_named(graph, name)))] = True
    return banned
