"""What transfers cost at least: the carving bound, which sees that whoever takes a part of a graph cuts nets.

As in the packing bound (dagpacking.py), prices u of the items prove that no placement has a largest load of T or less:

    P1        sum_v u_v  >  sum_g count_g w_g
    P3[g]     w_g  >=  u(S)  for every set S of items whose load on a device of kind g, transfers included, is at most T

w_g is bounded from above, by the sets' size k (their time in coarse units, rounded down), with multipliers mu, nu >= 0:

    w_g  <=  max_k min_(mu, nu) ( mu T + nu capacity_g + max_(S of size k)  u(S) - mu load(S) - nu bytes(S) )

where the inner maximum is a dynamic program (dagfrontier.py), and one for all T.  The size is what makes this strong:
without it the sets that cut nothing, no item and all, are the best, as in the relaxation of an integer program.

The prices start at those of the fractional balance and are improved by cutting planes (Kelley 1960): every best set met
is a row of a linear program, which changes the prices of blocks of items in a box around the best ones.  Whatever that
program says, the prices prove what they prove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pulp
from numpy.typing import NDArray

from autopart.planning.graphs.dagbalance import balance_prices
from autopart.planning.graphs.dagfrontier import Filling, Frontier, fill, narrow_frontier
from autopart.planning.graphs.dagproblem import DagProblem, Part, part_load
from autopart.planning.graphs.dagsolve import expression, quiet_pulp
from autopart.planning.solving.effort import IsOver, never

__all__ = ["carving_bound"]

MOST_UNITS = 400
"""that the largest load is divided into"""
MOST_CELLS = 2e7
"""of the table of a dynamic program: its states times units times rows"""
NUM_BLOCKS = 24
"""of items next to each other, whose prices change together"""
MOST_ROUNDS = 200
AHEAD = 0.25
"""of the way from what is proven to what may be provable: for which load prices are looked for"""
WIDE, NARROW = 0.02, 1e-4
"""by which share prices may differ from the best ones at first, and at last"""
SHRINK = 0.8
"""of that share, whenever nothing better was found"""
CLOSE = 1e-4
"""relative: how closely the bound is looked for"""
SURE = 1 + 1e-9
"""by how much the worth of all items must be more than that of all devices, against rounding"""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worth:
    """What a device of a kind can hold at most, for any largest load; rows: mu = 0, and mu the price of its time."""

    kind: int
    filling: Filling
    mu: Floats
    rent: Floats
    """by row, of the device's bytes"""
    unit: float
    """time"""

    def by_row(self, load: float) -> Floats:
        """[row, size]: the figures of which w is the maximum, over sizes, of the minimum over rows."""
        last = min(int(load / self.unit) + 1, self.filling.best.shape[1] - 1)
        return np.asarray(self.filling.best[:, : last + 1] + (self.mu * load + self.rent)[:, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """A row of the linear program: w_kind >= u(items) - mu (load - T)."""

    kind: int
    items: NDArray[np.int64]
    mu: float
    load: float


def carving_bound(problem: DagProblem, low: float, high: float, *, out_of_time: IsOver = never) -> float:
    """No placement has a smaller largest load; ``low`` if nothing better is found.

    Args:
        problem: precedence is not regarded.
        low: a bound that is known.
        high: more than this need not be proven.
        out_of_time: ends the search.
    """
    if not problem.nets or not 0 < high < math.inf:
        return low
    frontiers = _frontiers(problem, out_of_time)
    return _Carving(problem, high, frontiers, out_of_time).improve(low) if frontiers else low


def _frontiers(problem: DagProblem, out_of_time: IsOver) -> dict[int, Frontier]:
    """By kind; none if there is no time for them."""
    kinds = [g for g, kind in enumerate(problem.kinds) if kind.count]
    pays = {g: problem.kinds[g].transfer_factor > 0 for g in kinds}
    made: dict[bool, Frontier] = {}
    for each in set(pays.values()):
        frontier = narrow_frontier(problem, problem.nets if each else (), out_of_time=out_of_time)
        if frontier is None:
            return {}
        made[each] = frontier
    return {g: made[pays[g]] for g in kinds}


class _Carving:
    """The search for prices."""

    def __init__(
        self, problem: DagProblem, high: float, frontiers: dict[int, Frontier], out_of_time: IsOver
    ) -> None:
        self.problem, self.high, self.frontiers, self.out_of_time = problem, high, frontiers, out_of_time
        self.time, self.memory = balance_prices(problem)
        self.times, self.sizes = np.array(problem.times), np.array(problem.sizes)
        self.start = self._prices_of_the_balance()
        self.block = self._blocks()
        self.cuts: list[_Cut] = []

    def _prices_of_the_balance(self) -> Floats:
        kinds = list(self.frontiers)
        runs = np.isfinite(self.times[kinds])
        charge = self.time[kinds][:, None] * np.where(runs, self.times[kinds], 0.0)
        charge += self.memory[kinds][:, None] * self.sizes
        return np.asarray(np.where(runs, charge, np.inf).min(axis=0))

    def _blocks(self) -> NDArray[np.int64]:
        """Per item: neighbours in the order, of about equal prices together."""
        order = list(next(iter(self.frontiers.values())).order)
        price = self.start[order]
        middle = (np.cumsum(price) - price / 2) / max(float(price.sum()), 1e-300)
        block = np.zeros(len(order), dtype=np.int64)
        block[order] = np.clip(middle * NUM_BLOCKS, 0, NUM_BLOCKS - 1).astype(np.int64)
        return block

    def improve(self, low: float) -> float:
        """The best bound: the best prices are kept, and what is around them is looked at in ever narrower boxes."""
        best = prices = self.start
        proven, merit, ceiling, width = low, -math.inf, self.high, WIDE
        for _ in range(MOST_ROUNDS):
            worths = self._worths(prices)
            if worths is None:
                break
            found = self._largest_refuted(prices, worths)
            if found > merit:
                best, merit, width = prices, found, min(width / SHRINK**2, WIDE)
            else:
                width *= SHRINK
            proven = max(proven, merit)
            if proven >= self.high:
                return self.high
            self._cut(worths, proven + AHEAD * (ceiling - proven))
            prices, ceiling = self._better_prices(best, proven, ceiling, width)
            if width < NARROW or ceiling <= proven * (1 + CLOSE):
                break
        return proven

    def _worths(self, prices: Floats) -> list[_Worth] | None:
        """What a device of each kind can hold; None if the time ran out."""
        worths = []
        for kind, frontier in self.frontiers.items():
            device = self.problem.kinds[kind]
            num_units = max(min(int(MOST_CELLS / (2 * frontier.size)), MOST_UNITS), 1)
            unit = self.high / num_units
            runs = self.times[kind] <= self.high
            times = np.where(runs, self.times[kind], 0.0)
            units = np.where(runs, np.floor(times / unit * (1 - 1e-12)), num_units + 1).astype(np.int64)
            mu, nu = np.array([0.0, self.time[kind]]), np.array([0.0, self.memory[kind]])
            worth = prices - mu[:, None] * times - nu[:, None] * self.sizes
            fee = mu * device.transfer_factor
            filling = fill(frontier, units, worth, fee, num_units, out_of_time=self.out_of_time)
            if filling is None:
                return None
            rent = np.where(nu > 0, nu, 0.0) * (device.capacity_bytes if nu[1] > 0 else 0.0)
            worths.append(_Worth(kind=kind, filling=filling, mu=mu, rent=rent, unit=unit))
        return worths

    def _largest_refuted(self, prices: Floats, worths: Sequence[_Worth]) -> float:
        """The largest load that the prices prove to be too little."""
        total = math.fsum(prices)

        def refuted(load: float) -> bool:
            most = [float(each.by_row(load).min(axis=0).max()) for each in worths]
            counts = [self.problem.kinds[each.kind].count for each in worths]
            return total > math.fsum(count * max(w, 0.0) for count, w in zip(counts, most, strict=True)) * SURE

        low, high = 0.0, self.high
        if refuted(high):
            return high
        while high - low > CLOSE / 10 * self.high:
            middle = (low + high) / 2
            low, high = (middle, high) if refuted(middle) else (low, middle)
        return low

    def _cut(self, worths: Sequence[_Worth], load: float) -> None:
        """Adds the sets that are worth most at a load."""
        for each in worths:
            by_row = each.by_row(load)
            size = int(np.argmax(by_row.min(axis=0)))
            row = int(np.argmin(by_row[:, size]))
            items = each.filling.items(row, size)
            own = part_load(self.problem, Part(kind=each.kind, items=items))
            self.cuts.append(_Cut(kind=each.kind, items=np.array(items, dtype=np.int64), mu=each.mu[row], load=own))

    def _better_prices(self, best: Floats, proven: float, ceiling: float, width: float) -> tuple[Floats, float]:
        """Prices near the best by which no set met is worth too much at a load, and the lowest load without such."""
        while ceiling > proven * (1 + CLOSE):
            load = proven + AHEAD * (ceiling - proven)
            prices, margin = self._dearest(best, load, width)
            if margin > 0:
                return prices, ceiling
            ceiling = load
        return best, ceiling

    def _dearest(self, best: Floats, load: float, width: float) -> tuple[Floats, float]:
        """The prices of which all items are worth most, less all devices, and that difference."""
        step = np.maximum(best, best.mean() / 10)
        with quiet_pulp():
            program = pulp.LpProblem("carving", pulp.LpMaximize)
            block = [pulp.LpVariable(f"b_{number}", lowBound=-width, upBound=width) for number in range(NUM_BLOCKS)]
            device = {kind: pulp.LpVariable(f"w_{kind}", lowBound=0) for kind in self.frontiers}
            counts = [-float(self.problem.kinds[kind].count) for kind in self.frontiers]
            steps = np.bincount(self.block, weights=step, minlength=NUM_BLOCKS)
            program.setObjective(expression([*block, *device.values()], [*steps.tolist(), *counts]))
            for cut in self.cuts:
                steps = np.bincount(self.block[cut.items], weights=step[cut.items], minlength=NUM_BLOCKS)
                row = expression([*block, device[cut.kind]], [*steps.tolist(), -1.0])
                program.addConstraint(row <= cut.mu * (cut.load - load) - math.fsum(best[cut.items]))
            program.solve(pulp.HiGHS(msg=False, threads=1))
            if program.sol_status != pulp.LpSolutionOptimal:
                return best, 0.0
            moved = np.array([each.value() for each in block])
        margin = float(pulp.value(program.objective)) + math.fsum(best)
        return np.maximum(best + step * moved[self.block], 0.0), margin
