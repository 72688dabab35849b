"""Two devices at a time: all items of both are shared out anew between them, by the dynamic program over frontiers.

Single moves do not get from one good placement to another where a whole block of items has to go; here a block goes as
easily as an item.  Loads are recomputed from their definition, so what is rounded in the program costs only quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from autopart.planning.graphs.dagfrontier import Filling, fill, frontier_along
from autopart.planning.graphs.dagproblem import DagProblem, Net, Part, part_bytes, part_load
from autopart.planning.solving.effort import IsOver, never

__all__ = ["reshare"]

NUM_UNITS = 300
"""that the time of one of the two is divided into"""
NUM_TRIED = 12
"""divisions that are recomputed"""
BETTER = 1 - 1e-9


def reshare(
    problem: DagProblem, parts: Sequence[Part], order: Sequence[int], *, out_of_time: IsOver = never
) -> tuple[Part, ...]:
    """The placement when no device can share its items with the one of the largest load so that this gets less.

    Args:
        problem: precedence is not regarded.
        parts: a placement that fits.
        order: of all items, with few open nets (``dagfrontier.narrow_frontier``).
        out_of_time: ends it with what is best by then.
    """
    rank = {item: at for at, item in enumerate(order)}
    devices = _all_devices(problem, parts)
    loads = [part_load(problem, part) for part in devices]
    while devices and not out_of_time():
        worst = max(range(len(devices)), key=lambda device: loads[device])
        if not loads[worst] > 0:
            break
        for other in sorted(range(len(devices)), key=lambda device: (loads[device], device)):
            if other == worst or out_of_time():
                continue
            pair = _shared(problem, rank, devices[worst], devices[other], loads[worst] * BETTER, out_of_time)
            if pair is not None:
                devices[worst], devices[other] = pair
                loads[worst], loads[other] = (part_load(problem, part) for part in pair)
                break
        else:
            break
    return tuple(part for part in devices if part.items)


def _all_devices(problem: DagProblem, parts: Sequence[Part]) -> list[Part]:
    """The parts, and an empty one for every device without."""
    idle = [
        Part(kind=g, items=()) for g, kind in enumerate(problem.kinds)
        for _ in range(kind.count - sum(part.kind == g for part in parts))
    ]
    return [*parts, *idle]


def _shared(
    problem: DagProblem, rank: dict[int, int], one: Part, other: Part, limit: float, out_of_time: IsOver
) -> tuple[Part, Part] | None:
    """The items of two devices, shared out so that both loads are below the limit; None if that was not found."""
    items = sorted((*one.items, *other.items), key=lambda item: rank[item])
    filling = _divisions(problem, items, one.kind, other.kind, limit, out_of_time)
    if filling is None:
        return None
    rest = math.fsum(time for item in items if math.isfinite(time := problem.times[other.kind][item]))
    here = np.arange(filling.best.shape[1]) * (limit / NUM_UNITS)
    largest = np.maximum(here, rest - filling.best[0])
    best, found = limit, None
    for size in np.argsort(largest, kind="stable")[:NUM_TRIED].tolist():
        if not np.isfinite(largest[size]):
            break
        chosen = set(filling.items(0, size))
        pair = tuple(
            Part(kind=kind, items=tuple(sorted(item for at, item in enumerate(items) if (at in chosen) == inside)))
            for kind, inside in ((one.kind, True), (other.kind, False))
        )
        value = max(part_load(problem, part) for part in pair)
        if value < best and all(_fits(problem, part) for part in pair):
            best, found = value, (pair[0], pair[1])
    return found


def _fits(problem: DagProblem, part: Part) -> bool:
    return part_bytes(problem, part) <= problem.kinds[part.kind].capacity_bytes * (1 + 1e-12)


def _divisions(
    problem: DagProblem, items: Sequence[int], one: int, other: int, limit: float, out_of_time: IsOver
) -> Filling | None:
    """By time on the one: how much less than all the other then computes, less what both transfer."""
    number = {item: at for at, item in enumerate(items)}
    factor = (problem.kinds[one].transfer_factor + problem.kinds[other].transfer_factor) / 2
    nets = []
    for net in problem.nets:
        pins = tuple(number[pin] for pin in net.pins if pin in number)
        if len(pins) > 1:  # cut between the two, both pay; with items elsewhere one always does, and then the other too
            both = 2.0 if len(pins) == len(net.pins) else 1.0
            nets.append(Net(pins=pins, cost=net.cost * factor * both))
    frontier = frontier_along(range(len(items)), nets, out_of_time=out_of_time)
    if frontier is None:
        return None
    times = np.array([problem.times[one][item] for item in items])
    gain = np.array([problem.times[other][item] for item in items])
    units = np.where(times <= limit, np.rint(np.where(times <= limit, times, 0.0) / limit * NUM_UNITS), NUM_UNITS + 1)
    gain = np.where(np.isfinite(gain), gain, 10 * limit)
    return fill(frontier, units.astype(np.int64), gain[None, :], np.ones(1), NUM_UNITS, out_of_time=out_of_time)
