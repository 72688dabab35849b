"""Placing a graph on kinds of devices so that the largest load is least: the problem, and what a part of it costs.

The load of a device is the computing of its items and, for every *net* it cuts, the net's cost times the kind's
transfer factor.  A net is an output with everything that needs it; a device cuts it if it holds some of its items but
not all: it either sends that output (once) or receives it (once).  Tarnawski et al. 2020, section 3, which has the
factor 1 for accelerators and 0 for CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DagProblem", "DeviceKind", "Net", "Part", "contract", "part_bytes", "part_load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """Equal devices."""

    name: str
    count: int
    capacity_bytes: float
    """of one device; inf: no cap"""
    transfer_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """An output and all items that make or need it, in ascending order."""

    pins: tuple[int, ...]
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one device of a kind gets."""

    kind: int
    items: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DagProblem:
    """Items are numbered from 0; ``times[kind][item]`` is inf where the kind cannot run the item."""

    kinds: tuple[DeviceKind, ...]
    times: tuple[tuple[float, ...], ...]
    sizes: tuple[float, ...]
    nets: tuple[Net, ...]
    precedence: tuple[tuple[int, int], ...]
    """(before, after): in a contiguous placement the devices can be put in an order that respects these pairs"""
    members: tuple[tuple[int, ...], ...]
    """the caller's nodes in each item"""

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.sizes)


def part_load(problem: DagProblem, part: Part) -> float:
    """Load of a device that gets exactly these items."""
    inside = set(part.items)
    load = math.fsum(problem.times[part.kind][item] for item in part.items)
    cut = (net.cost for net in problem.nets if 0 < sum(pin in inside for pin in net.pins) < len(net.pins))
    return load + problem.kinds[part.kind].transfer_factor * math.fsum(cut)


def part_bytes(problem: DagProblem, part: Part) -> float:
    """Memory that these items take."""
    return math.fsum(problem.sizes[item] for item in part.items)


def contract(problem: DagProblem, group: Sequence[int]) -> DagProblem:
    """The problem in which the items of one group (numbered by any integers) are one item."""
    number: dict[int, int] = {}
    new = [number.setdefault(name, len(number)) for name in group]
    inside: list[list[int]] = [[] for _ in number]
    for item, target in enumerate(new):
        inside[target].append(item)
    costs: dict[tuple[int, ...], float] = {}
    for net in problem.nets:
        pins = tuple(sorted({new[pin] for pin in net.pins}))
        if len(pins) > 1 and net.cost > 0:
            costs[pins] = costs.get(pins, 0.0) + net.cost
    return DagProblem(
        kinds=problem.kinds,
        times=tuple(tuple(math.fsum(row[item] for item in items) for items in inside) for row in problem.times),
        sizes=tuple(math.fsum(problem.sizes[item] for item in items) for items in inside),
        nets=tuple(Net(pins=pins, cost=cost) for pins, cost in sorted(costs.items())),
        precedence=tuple(sorted({(new[a], new[b]) for a, b in problem.precedence if new[a] != new[b]})),
        members=tuple(tuple(node for item in items for node in problem.members[item]) for items in inside),
    )
