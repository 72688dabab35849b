"""Placements without contiguity: from the contiguous one by search, proven or improved by an integer program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices, simple_prices
from autopart.planning.graphs.dagcarving import carving_bound
from autopart.planning.graphs.dagfrontier import narrow_frontier
from autopart.planning.graphs.dagmerge import absorb_leaves
from autopart.planning.graphs.dagpacking import packing_bound
from autopart.planning.graphs.dagpairs import reshare
from autopart.planning.graphs.dagplan import Placement, largest_load, place_nodes
from autopart.planning.graphs.dagproblem import DagProblem, Part, contract, part_bytes
from autopart.planning.graphs.dagprogram import improve_or_prove
from autopart.planning.graphs.dagsearch import search
from autopart.planning.solving.effort import IsOver
from autopart.schema.job import SolverName

__all__ = ["non_contiguous"]

MOST_ROUNDS = 60

MOST_MOVES = 500
"""per round"""

MOST_VARIABLES = 1_000
"""of the integer program, per second that there is for it; a larger one does not get beyond its first relaxation"""

SEARCH_SHARE = 0.3
"""of the time, for the search before the bounds; what is left after them, and after the program, is for it as well"""

PACKING_SHARE = 0.1
"""of the time, for the packing bound"""

CARVING_SHARE = 0.5
"""of the time, for the carving bound"""

POLISH_SHARE = 0.1
"""of the time, that the program leaves for the search and the bounds after it"""

SHARP = 0.9
"""the program is asked for a little more than the gap wanted, which tolerances then take away"""


def non_contiguous(
    problem: DagProblem, start: Placement, *, solver: SolverName, gap: float, time_limit_seconds: float,
    clock: Callable[[], float],
) -> Placement:
    """The best placement of any shape; it is never worse than ``start``, where the search begins."""
    light = absorb_leaves(problem, with_bytes=False).problem
    found = _Free(light, gap=gap, solver=solver, deadline=clock() + time_limit_seconds, clock=clock)
    found.run(_start(problem, light, start.parts) or _first_fit(light), time_limit_seconds)
    placed, value = place_nodes(light, found.parts), found.value
    if start.parts and start.objective <= value:
        placed, value = start.parts, start.objective
    bound, name = found.known
    return Placement(
        parts=placed, objective=value, bound=min(bound, value), bound_name=name, solver=found.solved_by
    )


class _Free:
    """The best placement so far, and the best bound with its name."""

    def __init__(
        self, problem: DagProblem, *, gap: float, solver: SolverName, deadline: float, clock: Callable[[], float]
    ) -> None:
        self.problem, self.gap, self.solver, self.deadline, self.clock = problem, gap, solver, deadline, clock
        self.parts: tuple[Part, ...] = ()
        self.known = _balance(problem), "fractional balance"
        self.order: tuple[int, ...] = ()
        """of the items, with few open nets; made when it is needed"""
        self.solved_by = "tabu search"

    @property
    def value(self) -> float:
        """Largest load; inf without a placement."""
        return largest_load(self.problem, self.parts)

    def is_near(self) -> bool:
        """Whether the gap is small enough."""
        return self.value <= self.known[0] * (1 + self.gap)

    def until(self, seconds: float) -> IsOver:
        """Ends after so long, and at the deadline."""
        end = min(self.clock() + seconds, self.deadline)
        return lambda: self.clock() >= end

    def run(self, start: tuple[Part, ...], seconds: float) -> None:
        """Search, bounds, and the program if it is needed and not too large."""
        self.parts = start
        self.search(self.until(SEARCH_SHARE * seconds))
        tight, item_of = _joined(self.problem, self.value)
        self.learn(min(_balance(tight), self.value), self.known[1])
        self.bound(tight, PACKING_SHARE * seconds, CARVING_SHARE * seconds)
        if self.is_near():
            return
        reserve = POLISH_SHARE * seconds
        if _num_variables(tight) <= MOST_VARIABLES * (self.deadline - self.clock() - reserve):
            self.ask(tight, item_of, reserve)
        self.search(self.until(seconds), seed=1)
        self.bound(tight, POLISH_SHARE * seconds, POLISH_SHARE * seconds)

    def learn(self, bound: float, name: str) -> None:
        """Keeps a bound if it is better."""
        if bound > self.known[0]:
            self.known = bound, name

    def search(self, is_over: IsOver, seed: int = 0) -> None:
        """Looks for something better around the best placement."""
        if not self.parts or self.is_near():
            return
        if not self.order:
            frontier = narrow_frontier(self.problem, self.problem.nets, out_of_time=is_over)
            self.order = frontier.order if frontier is not None else tuple(range(self.problem.num_items))
        self.parts = search(
            self.problem, self.parts, num_rounds=min(MOST_ROUNDS, 4 + 2 * self.problem.num_items),
            moves_per_round=min(MOST_MOVES, 20 * self.problem.num_items), target=self.known[0] * (1 + self.gap),
            out_of_time=is_over, seed=seed,
            polish=lambda parts: reshare(self.problem, parts, self.order, out_of_time=is_over),
        )

    def bound(self, tight: DagProblem, packing_seconds: float, carving_seconds: float) -> None:
        """Bounds of the items alone and of the graph; as much as is needed for the gap."""
        high = self.value / (1 + SHARP * self.gap)
        if math.isfinite(high) and not self.is_near():
            self.learn(
                packing_bound(tight, self.known[0], high, out_of_time=self.until(packing_seconds)),
                "packing of the items",
            )
        if math.isfinite(high) and not self.is_near():
            self.learn(
                carving_bound(tight, self.known[0], high, out_of_time=self.until(carving_seconds)),
                "carving of the graph",
            )

    def ask(self, tight: DagProblem, item_of: tuple[int, ...], reserve_seconds: float) -> None:
        """The integer program: a better placement, or a better bound, or that nothing fits."""
        most = 2 * _worst(tight)  # so that "infeasible" is about all placements
        verdict = improve_or_prove(
            tight, incumbent=self.value if self.parts else most, bound=self.known[0], gap=SHARP * self.gap,
            solver=self.solver, time_limit_seconds=self.deadline - self.clock() - reserve_seconds, clock=self.clock,
        )
        if not self.parts and not verdict.parts and verdict.bound > most / 2:
            self.learn(math.inf, "integer program")
            return
        self.learn(verdict.bound, "integer program")
        parts, value = _checked(self.problem, _apart(verdict.parts, item_of))
        if value < self.value:
            self.parts = parts
        if verdict.parts or math.isfinite(verdict.bound):
            self.solved_by = f"tabu search, {verdict.solver}"


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
