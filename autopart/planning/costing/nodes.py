"""Clusters of many nodes: devices of a kind planned for as one group, with the best link that any two of them have.

A group per kind and node is exact, but many groups make the programs large.  With the nodes' devices put together every
message takes at most as long as it really does, so what is proven of the merged cluster is a lower bound for the real
one.  A path of it becomes a plan by giving every stage real devices, in path order and on the node of the stage before
where there is room; that plan is then evaluated with the real links.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autopart.planning.costing.groups import Group, LinkIndex, group_devices, link_classes, links_within
from autopart.schema.device import Cluster, Device, Link

__all__ = ["Home", "devices_along", "has_many_groups", "homes", "merged_nodes", "whole_nodes"]

MOST_STATES = 300_000
"""vectors of used devices per group, above which they are not listed (see ``bottleneck``)"""
MOST_PAIRS = 100
"""pairs of a group and a link class, above which the stages that differ in nothing else are too many"""


def has_many_groups(cluster: Cluster, apart: frozenset[str]) -> bool:
    """Whether the cluster's groups are too many to be told apart."""
    groups = group_devices(cluster, apart)
    classes = max(link_classes(groups, links_within(cluster, groups))) + 1
    return math.prod(group.size + 1 for group in groups) > MOST_STATES or len(groups) * classes > MOST_PAIRS


def merged_nodes(cluster: Cluster, apart: frozenset[str]) -> Cluster:
    """The cluster with one node per kind of device and the best links between them; the same one if that is no change.

    Devices are of a kind here if they have the same figures; those named in ``apart`` stay alone.
    """
    groups = group_devices(cluster, apart)
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, group in enumerate(groups):
        kinds.setdefault(_figures(group.device, apart), []).append(number)
    if len(kinds) == len(groups):
        return cluster
    between = links_within(cluster, groups)
    names = [f"{groups[numbers[0]].device.name} and its like" for numbers in kinds.values()]
    links = []
    for one, some in zip(names, kinds.values(), strict=True):
        for other, others in zip(names, kinds.values(), strict=True):
            found = [link for a in some for b in others if (link := between[a][b]) is not None]
            if one <= other and found:
                links.append(_best(found, (one, other)))
    node = {
        device.name: name
        for name, numbers in zip(names, kinds.values(), strict=True)
        for number in numbers for device in groups[number].devices
    }
    devices = tuple(replace(device, node=node[device.name]) for device in cluster.devices)
    return replace(cluster, devices=devices, links=tuple(links))


def _figures(device: Device, apart: frozenset[str]) -> tuple[object, ...]:
    alone = device.name if device.name in apart else ""
    return (device.kind, device.speed, device.memory_bytes, device.backend, device.rent_usd_per_hour, alone)


def _best(links: Sequence[Link], ends: tuple[str, str]) -> Link:
    return Link(
        level="node", ends=ends, latency_seconds=min(link.latency_seconds for link in links),
        bandwidth_bytes_per_second=max(link.bandwidth_bytes_per_second for link in links),
        origin="assumed", source="the best link of any two of them",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """How the devices of a merged group really stand."""

    widest: int
    """most of them in one node: no stage takes more, and one that takes as many has the node for itself"""
    beyond: Link | None
    """the best that two nodes of the group have; None if there is one node only"""


def homes(real: Cluster, groups: Sequence[Group], apart: frozenset[str]) -> tuple[Home, ...]:
    """Of every group of a merged cluster, whose devices are those of the real one."""
    nodes = group_devices(real, apart)
    between = links_within(real, nodes)
    found = []
    for group in groups:
        names = {device.name for device in group.devices}
        inside = [number for number, node in enumerate(nodes) if node.device.name in names]
        beyond = [link for a in inside for b in inside if a != b and (link := between[a][b]) is not None]
        found.append(Home(
            widest=max(nodes[number].size for number in inside),
            beyond=_best(beyond, (group.device.name, group.device.name)) if beyond else None,
        ))
    return tuple(found)


def whole_nodes(cluster: Cluster, apart: frozenset[str], width: int) -> Cluster:
    """The cluster with so many devices of every group that stages of up to ``width`` of them leave none over.

    Widths are powers of two: whatever stages go into such groups together go into each of them.
    """
    kept = {
        device.name for group in group_devices(cluster, apart)
        for device in group.devices[: group.size - group.size % width if group.size >= width else group.size]
    }
    return replace(cluster, devices=tuple(device for device in cluster.devices if device.name in kept))


def devices_along(
    cluster: Cluster, groups: Sequence[Group], stages: Sequence[tuple[int, int]], stays: Sequence[bool] = ()
) -> tuple[tuple[Device, ...], ...]:
    """Real devices for (group, number of devices) of every stage; () if the stages do not go into the nodes.

    Args:
        cluster: the real one.
        groups: of the merged one, which hold the same devices.
        stages: from first to last.
        stays: whether each is meant to be on the node of the stage before; () if that is not known.
    """
    in_order = range(len(stages))
    widest_first = sorted(in_order, key=lambda at: -stages[at][1])
    return (
        _by_runs(cluster, groups, stages, stays)
        or _given(cluster, groups, stages, in_order) or _given(cluster, groups, stages, widest_first)
    )  # fmt: skip


def _by_runs(
    cluster: Cluster, groups: Sequence[Group], stages: Sequence[tuple[int, int]], stays: Sequence[bool]
) -> tuple[tuple[Device, ...], ...]:
    """Stages that are meant to be on one node are: longest runs first, each on the fullest node with room for it."""
    runs: list[list[int]] = []
    for at, on_node in enumerate(stays):
        if on_node and runs:
            runs[-1].append(at)
        else:
            runs.append([at])
    kind_of = {device.name: number for number, group in enumerate(groups) for device in group.devices}
    free: list[list[Device]] = [list(group.devices) for group in group_devices(cluster)]
    kinds = [kind_of.get(devices[0].name, -1) for devices in free]
    chosen: dict[int, tuple[Device, ...]] = {}
    for run in sorted(runs, key=lambda run: -sum(stages[at][1] for at in run)):
        group, total = stages[run[0]][0], sum(stages[at][1] for at in run)
        roomy = [place for place, devices in enumerate(free) if kinds[place] == group and len(devices) >= total]
        if not roomy:
            return ()
        place = min(roomy, key=lambda place: len(free[place]))
        for at in run:
            chosen[at] = tuple(free[place][: stages[at][1]])
            free[place] = free[place][stages[at][1] :]
    return tuple(chosen[at] for at in range(len(stays)))


def _given(
    cluster: Cluster, groups: Sequence[Group], stages: Sequence[tuple[int, int]], order: Sequence[int]
) -> tuple[tuple[Device, ...], ...]:
    """Devices for one stage after the other, in this order; () if one finds no room."""
    kind_of = {device.name: number for number, group in enumerate(groups) for device in group.devices}
    free: list[list[Device]] = [list(group.devices) for group in group_devices(cluster)]
    kinds = [kind_of.get(devices[0].name, -1) for devices in free]
    chosen: dict[int, tuple[Device, ...]] = {}
    links = LinkIndex(cluster)
    for at in order:
        group, width = stages[at]
        rest = sum(r for later, (g, r) in enumerate(stages) if g == group and later not in chosen)
        roomy = [place for place, devices in enumerate(free) if kinds[place] == group and len(devices) >= width]
        if not roomy:
            return ()
        before = chosen[at - 1][0] if at - 1 in chosen else None
        place = min(roomy, key=lambda place: _worth(links, before, free[place], rest))
        chosen[at] = tuple(free[place][:width])
        free[place] = free[place][width:]
    return tuple(chosen[at] for at in range(len(stages)))


def _worth(links: LinkIndex, before: Device | None, devices: list[Device], rest: int) -> tuple[float, float, int, int]:
    """The shortest way from the stage before, then the node that the rest of the group's stages just goes into."""
    link = None if before is None else links.between(before, devices[0])
    away = before is not None and link is None
    slow = 0.0 if link is None else 1 / link.bandwidth_bytes_per_second
    lack = max(rest - len(devices), 0)
    return (math.inf if away else slow, link.latency_seconds if link else 0.0, lack, len(devices))
