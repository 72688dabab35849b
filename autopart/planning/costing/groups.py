"""Devices that are interchangeable, so that the integer program need not tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from autopart.schema.device import Cluster, Device, Link

__all__ = ["Group", "LinkIndex", "group_devices", "link_between", "link_classes", "links_within"]

Terms = tuple[float, float] | None
"""latency and bandwidth of a link; None: not connected"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Interchangeable devices, in the order of the cluster."""

    devices: tuple[Device, ...]

    @staticmethod
    def of(devices: Sequence[Device]) -> Group:
        """The group of these devices."""
        return Group(devices=tuple(devices))

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def device(self) -> Device:
        """Any one of them."""
        return self.devices[0]

    @property
    def rent_usd_per_hour(self) -> float:
        """Of one of them; 0 where it is not known."""
        return self.device.rent_usd_per_hour or 0.0


class LinkIndex:
    """The link rules of a cluster by what they name: the same answers as ``link_between``, however many there are."""

    def __init__(self, cluster: Cluster) -> None:
        self._links = cluster.links
        self._first: dict[tuple[str, str, str], int] = {}
        for number, link in enumerate(cluster.links):
            for ends in (link.ends, link.ends[::-1]):
                self._first.setdefault((link.level, *ends), number)

    def between(self, one: Device, other: Device) -> Link | None:
        """The first rule that speaks of two different devices, or None if nothing connects them."""
        names = {"device": (one.name, other.name), "node": (one.node, other.node)}
        if one.node == other.node:
            names["kind"] = (one.kind, other.kind)
        found = (
            self._first.get((level, near, far))
            for level, ends in names.items() for near in (ends[0], "*") for far in (ends[1], "*")
        )
        first = min((number for number in found if number is not None), default=None)
        return None if first is None else self._links[first]


def link_between(cluster: Cluster, one: Device, other: Device) -> Link | None:
    """The link of two different devices, or None if nothing connects them."""
    try:
        return cluster.link(one, other)
    except KeyError:
        return None


@lru_cache(maxsize=32)
def group_devices(cluster: Cluster, apart: frozenset[str] = frozenset()) -> tuple[Group, ...]:
    """The groups of a cluster, in the order of their first devices; devices named in ``apart`` are alone in theirs.

    Two devices are in one group if swapping them changes nothing: same kind, speed, memory and rent, and the same link
    to every third device.  That is an equivalence (twins of a graph), so comparing with one member suffices, and all
    pairs inside a group have the same link.
    """
    alike = _alike_by_rules(cluster, apart)
    links = links_within(cluster, tuple(Group.of(members) for members in alike))
    terms = [[_terms(link) for link in row] for row in links]
    merged: list[list[int]] = []
    for number, members in enumerate(alike):
        for other in merged:
            if not apart & {members[0].name, alike[other[0]][0].name} and _are_twins(alike, terms, other[0], number):
                other.append(number)
                break
        else:
            merged.append([number])
    position = {device.name: index for index, device in enumerate(cluster.devices)}
    return tuple(
        Group.of(sorted((d for number in numbers for d in alike[number]), key=lambda d: position[d.name]))
        for numbers in merged
    )


def _alike_by_rules(cluster: Cluster, apart: frozenset[str]) -> list[list[Device]]:
    """Devices that no link rule can tell apart: same figures, same node, not named by a rule."""
    named = {end for link in cluster.links if link.level == "device" for end in link.ends} | apart
    buckets: dict[tuple[object, ...], list[Device]] = {}
    for device in cluster.devices:
        key = (*_figures(device), device.node, device.name if device.name in named else "")
        buckets.setdefault(key, []).append(device)
    return list(buckets.values())


def _figures(device: Device) -> tuple[object, ...]:
    return (device.kind, device.speed, device.memory_bytes, device.backend, device.rent_usd_per_hour)


def _are_twins(alike: Sequence[Sequence[Device]], terms: list[list[Terms]], one: int, other: int) -> bool:
    """Whether the devices of two sets may be swapped: same figures, and same links to all third devices."""
    if _figures(alike[one][0]) != _figures(alike[other][0]):
        return False
    between = terms[one][other]
    inside = all(terms[k][k] == between for k in (one, other) if len(alike[k]) > 1)
    rest = (k for k in range(len(alike)) if k not in (one, other))
    return inside and all(terms[one][k] == terms[other][k] for k in rest)


def _terms(link: Link | None) -> Terms:
    return None if link is None else (link.latency_seconds, link.bandwidth_bytes_per_second)


@lru_cache(maxsize=32)
def links_within(cluster: Cluster, groups: tuple[Group, ...]) -> tuple[tuple[Link | None, ...], ...]:
    """Entry [h][g] is the link between a device of group h and another one of group g (None: not connected)."""
    index = LinkIndex(cluster)
    return tuple(tuple(_group_link(index, source, target) for target in groups) for source in groups)


def _group_link(index: LinkIndex, source: Group, target: Group) -> Link | None:
    if source is target:
        return index.between(source.devices[0], source.devices[1]) if source.size > 1 else None
    return index.between(source.device, target.device)


def link_classes(
    groups: tuple[Group, ...], links: tuple[tuple[Link | None, ...], ...]
) -> tuple[int, ...]:
    """Class of every group; the link of a lone device to its own kind does not exist and matches any."""
    rows: list[list[tuple[float, float] | str | None]] = []
    classes = []
    for number, group in enumerate(groups):
        row: list[tuple[float, float] | str | None] = [
            "any" if other == number and group.size == 1
            else None if link is None else (link.latency_seconds, link.bandwidth_bytes_per_second)
            for other, link in enumerate(links[number])
        ]
        for index, known in enumerate(rows):
            if all(one == other or "any" in (one, other) for one, other in zip(known, row, strict=True)):
                rows[index] = [other if one == "any" else one for one, other in zip(known, row, strict=True)]
                classes.append(index)
                break
        else:
            classes.append(len(rows))
            rows.append(row)
    return tuple(classes)
