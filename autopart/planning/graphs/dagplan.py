"""Contiguous placements of a graph: passes over ever larger families of ideals, each with the last one's limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices, simple_prices
from autopart.planning.graphs.dagcarving import carving_bound
from autopart.planning.graphs.dagideals import Family, all_ideals, family_of, ideals_near, prefixes
from autopart.planning.graphs.dagmerge import Reduced, absorb_leaves, fuse_cycles
from autopart.planning.graphs.dagorders import ORDERS, topological_order
from autopart.planning.graphs.dagpacking import packing_bound
from autopart.planning.graphs.dagproblem import DagProblem, Part, part_load
from autopart.planning.graphs.dagsplit import OutOfTime, best_split
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Placement", "contiguous", "largest_load", "place_nodes"]

MOST_IDEALS = 60_000

MOST_ENTRIES = 1.5e8
"""of the table [net, ideal]"""

MANY_IDEALS = 25_000
"""from which on it pays to have a better limit before all of them are searched"""

IDEALS_PER_ROUND = 6000

NUM_ROUNDS = 24
"""of the search where there are too many ideals, without anything better"""

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


def contiguous(
    problem: DagProblem, *, out_of_time: IsOver, exact_over: IsOver = never, search_over: IsOver = never,
    prove: bool = True,
) -> Placement:
    """The best placement whose devices can be put in an order that no edge of the precedence goes against.

    Args:
        problem: what to place.
        out_of_time: ends everything.
        exact_over: ends the dynamic program over all ideals.
        search_over: ends the search where there are too many ideals for that.
        prove: whether a bound is looked for where that program does not give it.
    """
    fused = fuse_cycles(problem)
    reduced = absorb_leaves(fused, with_bytes=True)
    times = _Times(all=out_of_time, exact=exact_over, search=search_over)
    found = _Search(reduced.problem, times)
    exact = found.run()
    if reduced.relaxation is reduced.problem:
        name = f"dynamic program over all {found.num_ideals} ideals"
        return _placed(found, found.best, name) if exact else _bounded(found, reduced.problem, prove)
    return _without_merged_bytes(fused, reduced, found, prove)


def _without_merged_bytes(fused: DagProblem, reduced: Reduced, found: _Search, prove: bool) -> Placement:
    """Memory may bind, and leaves with bytes were absorbed: proves that this loses nothing, or does without it."""
    relaxed = _Search(reduced.relaxation, found.times, limit=found.best)
    if found.parts and relaxed.over_all_ideals() and relaxed.best >= found.best * STRICT:
        name = f"dynamic program over all {relaxed.num_ideals} ideals, leaves without bytes"
        return _placed(found, found.best, name)
    light = absorb_leaves(fused, with_bytes=False).problem
    plain = _Search(light, found.times, limit=found.best)
    exact = plain.over_all_ideals() if found.parts else plain.run()
    best = plain if plain.parts else found
    if exact:
        return _placed(best, best.best, f"dynamic program over all {plain.num_ideals} ideals")
    if found.parts and relaxed.num_ideals and relaxed.finished:
        name = f"dynamic program over all {relaxed.num_ideals} ideals, leaves without bytes"
        return _placed(best, relaxed.best, name)
    return _bounded(best, light, prove)


def _bounded(found: _Search, problem: DagProblem, prove: bool) -> Placement:
    """The best placement with the best bound there is without all ideals; nothing is lost in the ``problem``."""
    bound = max(balance_bound(problem, way(problem)) for way in (balance_prices, simple_prices))
    name = "fractional balance"
    for other, way in (("carving of the graph", carving_bound), ("packing of the items", packing_bound)):
        if prove and found.parts and bound < found.best:
            better = way(problem, bound, found.best, out_of_time=found.times.all)
            bound, name = (better, other) if better > bound else (bound, name)
    return _placed(found, bound, name)


def _placed(found: _Search, bound: float, name: str) -> Placement:
    return Placement(
        parts=place_nodes(found.problem, found.parts), objective=found.best, bound=min(bound, found.best),
        bound_name=name, solver="dynamic program",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    """What ends when."""

    all: IsOver
    exact: IsOver
    search: IsOver

    def exact_over(self) -> bool:
        """Of the dynamic program over all ideals."""
        return self.all() or self.exact()

    def search_over(self) -> bool:
        """Of the search where there are too many."""
        return self.all() or self.search()


class _Search:
    """The best placement of one problem so far."""

    def __init__(self, problem: DagProblem, times: _Times, limit: float = math.inf) -> None:
        self.problem = problem
        self.times = times
        self.best = limit
        self.parts: tuple[Part, ...] = ()
        prices = balance_prices(problem)
        self.prices = [prices[0], simple_prices(problem)[0]]
        self.most = int(min(MOST_IDEALS, MOST_ENTRIES / max(len(problem.nets), 1)))
        self.num_ideals = 0
        self.finished = False
        """whether all ideals were searched"""

    def run(self) -> bool:
        """All passes; whether the best placement is proven to be that."""
        self.along_orders()
        if self.over_all_ideals():
            return True
        if not self.num_ideals:
            self.near_the_best()
        return False

    def _pass(self, family: Family, out_of_time: IsOver) -> None:
        """One dynamic program.

        Raises:
            OutOfTime: it did not come to its end.
        """
        parts = best_split(
            self.problem, family, limit=self.best * STRICT, prices=self.prices, out_of_time=out_of_time,
        )
        value = largest_load(self.problem, parts or ())
        if parts and value < self.best:
            self.best, self.parts = value, parts

    def over_all_ideals(self) -> bool:
        """The exact pass; False if there are too many ideals or too little time, and nothing is proven."""
        ideals = all_ideals(self.problem, self.most, out_of_time=self.times.exact_over)
        if ideals is None:
            return False
        self.num_ideals = len(ideals)
        try:
            while len(ideals) > MANY_IDEALS and self._along_corridors():
                pass
            self._pass(family_of(self.problem, ideals), self.times.exact_over)
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
        self._pass(family_of(self.problem, few[::step]), never)
        try:
            for ideals in (few, several):
                self._pass(family_of(self.problem, ideals[: self.most]), self.times.search_over)
        except OutOfTime:
            return

    def near_the_best(self) -> None:
        """Rounds over the ideals near the best boundaries; where they give nothing, over random orders through them."""
        random = np.random.default_rng(0)
        per_round = max(min(8, self.most // (self.problem.num_items + 1)), 1)
        fruitless = 0
        try:
            while fruitless < NUM_ROUNDS and not self.times.search_over():
                if fruitless or not self._along_corridors():
                    before = self.best
                    orders = [self._order_through_boundaries(random) for _ in range(per_round)]
                    self._pass(family_of(self.problem, prefixes(orders)), self.times.search_over)
                    fruitless = 0 if self.best < before else fruitless + 1
        except OutOfTime:
            return

    def _along_corridors(self) -> bool:
        """One pass over all ideals near a boundary of the best placement; whether it gave a better one.

        Raises:
            OutOfTime: it did not come to its end.
        """
        boundaries, ideal = [], 0
        for part in self.parts[:-1]:
            ideal |= sum(1 << item for item in part.items)
            boundaries.append(ideal)
        each = min(IDEALS_PER_ROUND, self.most) // max(len(boundaries), 1)
        near = (other for boundary in boundaries for other in ideals_near(self.problem, boundary, each))
        before = self.best
        self._pass(family_of(self.problem, near), self.times.search_over)
        return self.best < before

    def _order_through_boundaries(self, random: np.random.Generator) -> list[int]:
        """Depth first, part after part, ties broken at random."""
        part_of = {item: number for number, part in enumerate(self.parts) for item in part.items}
        draw = random.random(self.problem.num_items)
        return topological_order(self.problem, lambda item, turn: (part_of.get(item, 0), -turn, draw[item]))
