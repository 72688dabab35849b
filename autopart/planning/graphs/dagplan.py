"""Contiguous placements of a graph: passes over ever larger families of ideals, each with the last one's limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices, simple_prices
from autopart.planning.graphs.dagideals import Family, all_ideals, family_of, prefixes
from autopart.planning.graphs.dagmerge import Reduced, absorb_leaves, fuse_cycles
from autopart.planning.graphs.dagorders import ORDERS, topological_order
from autopart.planning.graphs.dagpacking import packing_bound
from autopart.planning.graphs.dagproblem import DagProblem, Part, part_load
from autopart.planning.graphs.dagsplit import OutOfTime, best_split
from autopart.planning.solving.effort import never

__all__ = ["Placement", "contiguous", "largest_load", "place_nodes"]

MOST_IDEALS = 60_000

MOST_ENTRIES = 1.5e8
"""of the table [net, ideal]"""

NUM_ROUNDS = 12
"""rounds of random orders where the ideals are too many"""

STRICT = 1 - 1e-9
"""a placement counts as better only if it is by more than this"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What was found, and what is proven: by whom, and over what."""

    parts: tuple[tuple[int, tuple[int, ...]], ...]
    """(kind, the caller's nodes) of every device used, in order if contiguous; () if nothing fits"""
    objective: float
    bound: float
    """no placement of the mode is better; inf if none fits"""
    bound_name: str
    solver: str


def largest_load(problem: DagProblem, parts: Sequence[Part]) -> float:
    """Largest load of a placement, computed anew; inf for none."""
    return max((part_load(problem, part) for part in parts), default=math.inf)


def place_nodes(problem: DagProblem, parts: Sequence[Part]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The parts in the caller's nodes."""
    return tuple(
        (part.kind, tuple(sorted(node for item in part.items for node in problem.members[item]))) for part in parts
    )


def contiguous(problem: DagProblem, *, out_of_time: Callable[[], bool]) -> Placement:
    """The best placement whose devices can be put in an order that no edge of the precedence goes against."""
    fused = fuse_cycles(problem)
    reduced = absorb_leaves(fused, with_bytes=True)
    found = _Search(reduced.problem, out_of_time)
    exact = found.run()
    if reduced.relaxation is reduced.problem:
        name = f"dynamic program over all {found.num_ideals} ideals"
        return _placed(found, found.best, name) if exact else _balanced(found)
    return _without_merged_bytes(fused, reduced, found, out_of_time)


def _without_merged_bytes(
    fused: DagProblem, reduced: Reduced, found: _Search, out_of_time: Callable[[], bool]
) -> Placement:
    """Memory may bind, and leaves with bytes were absorbed: proves that this loses nothing, or does without it."""
    relaxed = _Search(reduced.relaxation, out_of_time, limit=found.best)
    if found.parts and relaxed.over_all_ideals() and relaxed.best >= found.best * STRICT:
        name = f"dynamic program over all {relaxed.num_ideals} ideals, leaves without bytes"
        return _placed(found, found.best, name)
    plain = _Search(absorb_leaves(fused, with_bytes=False).problem, out_of_time, limit=found.best)
    exact = plain.over_all_ideals() if found.parts else plain.run()
    best = plain if plain.parts else found
    if exact:
        return _placed(best, best.best, f"dynamic program over all {plain.num_ideals} ideals")
    if found.parts and relaxed.num_ideals and relaxed.finished:
        name = f"dynamic program over all {relaxed.num_ideals} ideals, leaves without bytes"
        return _placed(best, relaxed.best, name)
    return _placed(best, relaxed.balance, "fractional balance")


def _balanced(found: _Search) -> Placement:
    packed = found.balance
    if found.parts:
        packed = packing_bound(found.problem, found.balance, found.best, out_of_time=found.out_of_time)
    return _placed(found, packed, "packing of the items" if packed > found.balance else "fractional balance")


def _placed(found: _Search, bound: float, name: str) -> Placement:
    return Placement(
        parts=place_nodes(found.problem, found.parts), objective=found.best, bound=min(bound, found.best),
        bound_name=name, solver="dynamic program",
    )


class _Search:
    """The best placement of one problem so far."""

    def __init__(self, problem: DagProblem, out_of_time: Callable[[], bool], limit: float = math.inf) -> None:
        self.problem = problem
        self.out_of_time = out_of_time
        self.best = limit
        self.parts: tuple[Part, ...] = ()
        prices = balance_prices(problem)
        self.prices = [prices[0], simple_prices(problem)[0]]
        self.balance = max(balance_bound(problem, each) for each in (prices, simple_prices(problem)))
        self.most = int(min(MOST_IDEALS, MOST_ENTRIES / max(len(problem.nets), 1)))
        self.num_ideals = 0
        self.finished = False
        """whether all ideals were searched"""

    def run(self) -> bool:
        """All passes; whether the best placement is proven to be that."""
        self.along_orders()
        if self.over_all_ideals():
            return True
        self.along_random_orders()
        return False

    def _pass(self, family: Family, out_of_time: Callable[[], bool] | None = None) -> None:
        """One dynamic program, to its end if there is nothing to stop it.

        Raises:
            OutOfTime: it did not come to its end.
        """
        parts = best_split(
            self.problem, family, limit=self.best * STRICT, prices=self.prices,
            out_of_time=out_of_time or self.out_of_time,
        )
        value = largest_load(self.problem, parts or ())
        if parts and value < self.best:
            self.best, self.parts = value, parts

    def over_all_ideals(self) -> bool:
        """The exact pass; False if there are too many ideals or too little time, and nothing is proven."""
        ideals = all_ideals(self.problem, self.most, out_of_time=self.out_of_time)
        if ideals is None:
            return False
        self.num_ideals = len(ideals)
        try:
            self._pass(family_of(self.problem, ideals))
        except OutOfTime:
            return False
        self.finished = True
        return True

    def along_orders(self) -> None:
        """Passes over the ideals along some topological orders, thinned out first."""
        orders = [topological_order(self.problem, key) for key in ORDERS]
        step = max(self.problem.num_items // 200, 1)
        several = prefixes(orders)
        few = prefixes(orders[:1])
        self._pass(family_of(self.problem, few[::step]), out_of_time=never)
        try:
            for ideals in (few, several):
                self._pass(family_of(self.problem, ideals[: self.most]))
        except OutOfTime:
            return

    def along_random_orders(self) -> None:
        """Passes over random topological orders that go through the boundaries of the best placement."""
        random = np.random.default_rng(0)
        per_round = max(min(8, self.most // (self.problem.num_items + 1)), 1)
        try:
            for _ in range(NUM_ROUNDS):
                orders = [self._order_through_boundaries(random) for _ in range(per_round)]
                self._pass(family_of(self.problem, prefixes(orders)))
        except OutOfTime:
            return

    def _order_through_boundaries(self, random: np.random.Generator) -> list[int]:
        """Depth first, part after part, ties broken at random."""
        part_of = {item: number for number, part in enumerate(self.parts) for item in part.items}
        draw = random.random(self.problem.num_items)
        return topological_order(self.problem, lambda item, turn: (part_of.get(item, 0), -turn, draw[item]))
