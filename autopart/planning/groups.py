"""Devices that are interchangeable, so that the integer program need not tell them apart."""

from __future__ import annotations

from dataclasses import dataclass

from autopart.schema.device import Cluster, Device, Link

__all__ = ["Group", "group_devices", "link_between", "links_within"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Interchangeable devices, in the order of the cluster."""

    devices: tuple[Device, ...]

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def device(self) -> Device:
        """Any one of them."""
        return self.devices[0]


def link_between(cluster: Cluster, one: Device, other: Device) -> Link | None:
    """The link of two different devices, or None if nothing connects them."""
    try:
        return cluster.link(one, other)
    except KeyError:
        return None


def _speaks_like(cluster: Cluster, one: Device, other: Device, third: Device) -> bool:
    first, second = link_between(cluster, one, third), link_between(cluster, other, third)
    if first is None or second is None:
        return first is second
    return (first.latency_seconds, first.bandwidth_bytes_per_second) == (
        second.latency_seconds, second.bandwidth_bytes_per_second,
    )


def _interchangeable(cluster: Cluster, one: Device, other: Device) -> bool:
    if (one.kind, one.speed, one.memory_bytes, one.backend) != (
        other.kind, other.speed, other.memory_bytes, other.backend,
    ):
        return False
    rest = (device for device in cluster.devices if device not in (one, other))
    return all(_speaks_like(cluster, one, other, third) for third in rest)


def group_devices(cluster: Cluster) -> tuple[Group, ...]:
    """The groups of a cluster, in the order of their first devices.

    Two devices are in one group if swapping them changes nothing: same kind, speed and memory, and the same link to
    every third device.  That is an equivalence (twins of a graph), so comparing with one member suffices, and all
    pairs inside a group have the same link.
    """
    members: list[list[Device]] = []
    for device in cluster.devices:
        for group in members:
            if _interchangeable(cluster, group[0], device):
                group.append(device)
                break
        else:
            members.append([device])
    return tuple(Group(devices=tuple(group)) for group in members)


def links_within(cluster: Cluster, groups: tuple[Group, ...]) -> tuple[tuple[Link | None, ...], ...]:
    """Entry [h][g] is the link between a device of group h and another one of group g (None: not connected)."""
    return tuple(tuple(_group_link(cluster, source, target) for target in groups) for source in groups)


def _group_link(cluster: Cluster, source: Group, target: Group) -> Link | None:
    if source is target:
        return link_between(cluster, source.devices[0], source.devices[1]) if source.size > 1 else None
    return link_between(cluster, source.device, target.device)
