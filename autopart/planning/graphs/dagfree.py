"""Placements without contiguity: from the contiguous one by search, proven or improved by an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices, simple_prices
from autopart.planning.graphs.dagmerge import absorb_leaves
from autopart.planning.graphs.dagpacking import packing_bound
from autopart.planning.graphs.dagplan import Placement, largest_load, place_nodes
from autopart.planning.graphs.dagproblem import DagProblem, Part, contract, part_bytes
from autopart.planning.graphs.dagprogram import improve_or_prove
from autopart.planning.graphs.dagsearch import search
from autopart.schema.job import SolverName

__all__ = ["non_contiguous"]

MOST_ROUNDS = 60

MOST_MOVES = 500
"""per round"""

MOST_VARIABLES = 60_000
"""of the integer program; a larger one does not get beyond its first relaxation in a minute"""

SEARCH_SHARE = 0.3
"""of the time, for the search before the program"""

PACKING_SHARE = 0.3
"""of the time, for the packing bound"""

POLISH_SHARE = 0.1
"""of the time, for the search after the program has found something better"""

SHARP = 0.9
"""the program is asked for a little more than the gap wanted, which tolerances then take away"""


def non_contiguous(
    problem: DagProblem, start: Placement, *, solver: SolverName, gap: float, time_limit_seconds: float,
    clock: Callable[[], float],
) -> Placement:
    """The best placement of any shape; ``start`` is where the search begins, if it fits."""
    began = clock()
    light = absorb_leaves(problem, with_bytes=False).problem
    known = _balance(light), "fractional balance"
    parts = _start(problem, light, start.parts) or _first_fit(light)
    parts = _searched(light, parts, known[0] * (1 + gap), began + SEARCH_SHARE * time_limit_seconds, clock)
    value, solved_by = largest_load(light, parts), "tabu search"
    tight, item_of = _joined(light, value)
    known = max(known, (min(_balance(tight), value), known[1]))
    deadline = clock() + PACKING_SHARE * time_limit_seconds
    known = _packed(tight, known, value / (1 + SHARP * gap), deadline, clock)
    if value > known[0] * (1 + gap) and _num_variables(tight) <= MOST_VARIABLES:
        most = 2 * _worst(tight)  # so that "infeasible" is about all placements
        left = max((1 - POLISH_SHARE) * time_limit_seconds - (clock() - began), 1.0)
        verdict = improve_or_prove(
            tight, incumbent=value if parts else most, bound=known[0], gap=SHARP * gap, solver=solver,
            time_limit_seconds=left, clock=clock,
        )
        if not parts and not verdict.parts and verdict.bound > most / 2:
            return Placement(parts=(), objective=math.inf, bound=math.inf, bound_name="integer program", solver=solver)
        parts, value = min(((parts, value), _checked(light, _apart(verdict.parts, item_of))), key=lambda pair: pair[1])
        known = max(known, (verdict.bound, "integer program"))
        solved_by = f"tabu search, {verdict.solver}"
        if verdict.parts and value > known[0] * (1 + gap):
            deadline = clock() + POLISH_SHARE * time_limit_seconds
            parts = _searched(light, parts, known[0] * (1 + gap), deadline, clock)
            value = largest_load(light, parts)
        known = _packed(tight, known, value / (1 + SHARP * gap), clock() + POLISH_SHARE * time_limit_seconds, clock)
    placed = place_nodes(light, parts)
    if start.parts and start.objective <= value:
        placed, value = start.parts, start.objective
    return Placement(parts=placed, objective=value, bound=min(known[0], value), bound_name=known[1], solver=solved_by)


def _balance(problem: DagProblem) -> float:
    return max(balance_bound(problem, way(problem)) for way in (balance_prices, simple_prices))


def _joined(problem: DagProblem, limit: float) -> tuple[DagProblem, tuple[int, ...]]:
    """The problem in which all items of a net dearer than the limit are one, and the item that each has become.

    Whoever cuts such a net and pays for it is above the limit.  That somebody pays is certain where at most one device
    pays nothing.
    """
    free = sum(kind.count for kind in problem.kinds if kind.transfer_factor == 0)
    least = min((kind.transfer_factor for kind in problem.kinds if kind.transfer_factor > 0), default=0.0)
    root = list(range(problem.num_items))
    for net in problem.nets if free <= 1 else ():
        if net.cost * least > limit:
            roots = {_root(root, pin) for pin in net.pins}
            for each in roots:
                root[each] = min(roots)
    group = [_root(root, item) for item in range(problem.num_items)]
    number = {name: index for index, name in enumerate(dict.fromkeys(group))}
    return contract(problem, group), tuple(number[name] for name in group)


def _root(root: list[int], item: int) -> int:
    while root[item] != item:
        item = root[item]
    return item


def _apart(parts: Iterable[Part], item_of: tuple[int, ...]) -> tuple[Part, ...]:
    """The parts in the items of before ``_joined``."""
    return tuple(
        Part(kind=part.kind, items=tuple(item for item, joined in enumerate(item_of) if joined in set(part.items)))
        for part in parts
    )


def _packed(
    problem: DagProblem, known: tuple[float, str], high: float, deadline: float, clock: Callable[[], float]
) -> tuple[float, str]:
    """A bound and its name, or those of the packing of the items where that is better."""
    if not math.isfinite(high):
        return known
    found = packing_bound(problem, known[0], high, out_of_time=lambda: clock() >= deadline)
    return (found, "packing of the items") if found > known[0] else known


def _searched(
    problem: DagProblem, parts: tuple[Part, ...], target: float, deadline: float, clock: Callable[[], float]
) -> tuple[Part, ...]:
    if not parts:
        return ()
    return search(
        problem, parts, num_rounds=min(MOST_ROUNDS, 4 + 2 * problem.num_items),
        moves_per_round=min(MOST_MOVES, 20 * problem.num_items), target=target, out_of_time=lambda: clock() >= deadline,
    )


def _num_variables(problem: DagProblem) -> int:
    devices = sum(kind.count for kind in problem.kinds)
    return devices * (problem.num_items + 2 * len(problem.nets))


def _worst(problem: DagProblem) -> float:
    """No placement has a larger load."""
    times = (max((t for t in column if math.isfinite(t)), default=0.0) for column in zip(*problem.times, strict=True))
    factor = max(kind.transfer_factor for kind in problem.kinds)
    return math.fsum(times) + factor * math.fsum(net.cost for net in problem.nets)


def _checked(problem: DagProblem, parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], float]:
    """What a solver calls a placement, with its load; inf if it does not fit."""
    fits = all(part_bytes(problem, part) <= problem.kinds[part.kind].capacity_bytes * (1 + 1e-12) for part in parts)
    return (parts, largest_load(problem, parts)) if fits else ((), math.inf)


def _start(
    problem: DagProblem, light: DagProblem, parts: Iterable[tuple[int, tuple[int, ...]]]
) -> tuple[Part, ...]:
    """The placement of nodes as one of the light problem's items: each goes where its item that takes time is.

    What was absorbed into that takes no time, and may be elsewhere in the placement; put there it costs nothing.
    """
    given = tuple(parts)
    part_of = {node: number for number, (_, nodes) in enumerate(given) for node in nodes}
    busy = {nodes[0]: max(row[item] for row in problem.times) for item, nodes in enumerate(problem.members)}
    held: list[list[int]] = [[] for _ in given]
    for item, nodes in enumerate(light.members if given else ()):
        held[part_of[max(nodes, key=lambda node: busy.get(node, -1.0))]].append(item)
    return tuple(Part(kind=kind, items=tuple(items)) for (kind, _), items in zip(given, held, strict=True) if items)


def _first_fit(problem: DagProblem) -> tuple[Part, ...]:
    """Every item, largest first, on the first device that has room for it; () if one finds none."""
    devices = [(g, kind.capacity_bytes) for g, kind in enumerate(problem.kinds) for _ in range(kind.count)]
    room = [capacity for _, capacity in devices]
    held: list[list[int]] = [[] for _ in devices]
    for item in sorted(range(problem.num_items), key=lambda item: -problem.sizes[item]):
        fits = (
            at for at, (g, _) in enumerate(devices)
            if math.isfinite(problem.times[g][item]) and problem.sizes[item] <= room[at]
        )
        at = next(fits, None)
        if at is None:
            return ()
        held[at].append(item)
        room[at] -= problem.sizes[item]
    return tuple(Part(kind=g, items=tuple(sorted(items))) for (g, _), items in zip(devices, held, strict=True) if items)
