"""What is assumed about links that nobody measured or gave."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations_with_replacement
from typing import Literal

from autopart.profiling.devices.catalogue import kind_in, link_kind
from autopart.schema.device import Cluster, Device, Figure, Link, LinkKind
from autopart.units import format_rate

__all__ = ["BETWEEN_NODES", "UNKNOWN_HOST_LINK", "assumed_links", "link_of_kind"]

BETWEEN_NODES = "ethernet-10g"
UNKNOWN_HOST_LINK = "pcie-3-x16"
"""Host link of a device that the catalogue does not know."""


def assumed_links(cluster: Cluster) -> tuple[Link, ...]:
    """Rules for every pair of devices of a cluster, from its kinds and nodes; few, since they speak of kinds.

    Two devices of one kind in one node are joined by the kind's own link, others through the host at the pace of the
    slower host link, processes on one processor by the loopback, and nodes by 10 Gbit/s Ethernet.
    """
    within = [_between_kinds(cluster, *pair) for pair in _pairs_in_one_node(cluster)]
    if len({device.node for device in cluster.devices}) == 1:
        return tuple(within)
    between = link_of_kind(link_kind(BETWEEN_NODES), level="node", ends=("*", "*"), why="assumed between nodes")
    return (*within, between)


def link_of_kind(
    joined_by: LinkKind,
    *,
    level: Literal["device", "kind", "node"],
    ends: tuple[str, str],
    why: str,
    peak_bytes_per_second: Figure | None = None,
    origin: Literal["given", "assumed"] = "assumed",
) -> Link:
    """The rule that two ends are joined by a link kind of the catalogue, at a data-sheet rate of their own if given."""
    peak = peak_bytes_per_second or joined_by.bandwidth_bytes_per_second
    share = joined_by.efficiency
    return Link(
        level=level,
        ends=ends,
        latency_seconds=joined_by.latency_seconds.value,
        bandwidth_bytes_per_second=share.value * peak.value,
        origin=origin,
        source=f"{why}: {joined_by.name}, {share.value:g} of {format_rate(peak.value)} ({share.source})",
    )


def _pairs_in_one_node(cluster: Cluster) -> list[tuple[Device, Device]]:
    """One pair of devices for every pair of kinds that share a node, in the order of the devices."""
    nodes: dict[str, list[Device]] = defaultdict(list)
    for device in cluster.devices:
        nodes[device.node].append(device)
    pairs: dict[frozenset[str], tuple[Device, Device]] = {}
    for devices in nodes.values():
        kinds: dict[str, list[Device]] = defaultdict(list)
        for device in devices:
            kinds[device.kind].append(device)
        for some, others in combinations_with_replacement(kinds.values(), 2):
            if some[0] is not others[-1]:  # it is where a node has but one device of a kind
                pairs.setdefault(frozenset((some[0].kind, others[-1].kind)), (some[0], others[-1]))
    return list(pairs.values())


def _between_kinds(cluster: Cluster, one: Device, other: Device) -> Link:
    ends = (one.kind, other.kind)
    if one.backend == other.backend == "cpu":
        return link_of_kind(link_kind("loopback"), level="kind", ends=ends, why="assumed between processes")
    known = kind_in(cluster, one.kind)
    if one.kind == other.kind and known:
        return link_of_kind(
            link_kind(known.link),
            level="kind",
            ends=ends,
            why="assumed between two in one node",
            peak_bytes_per_second=known.link_bytes_per_second,
        )
    through = [_host_link(cluster, device) for device in (one, other) if device.backend != "cpu"]
    slower = min(through, key=lambda link: link.efficiency.value * link.bandwidth_bytes_per_second.value)
    return link_of_kind(slower, level="kind", ends=ends, why="assumed through the host")


def _host_link(cluster: Cluster, device: Device) -> LinkKind:
    known = kind_in(cluster, device.kind)
    return link_kind(known.host_link if known else UNKNOWN_HOST_LINK)
