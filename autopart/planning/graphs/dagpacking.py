"""How many items go into a device at all: the packing bound, which sees the grain that the fractional balance does not.

No placement has a largest load below T if the items cannot be packed into the devices with T of time each, transfers
left out.  A proof of that are prices u of the items, for which

    P1        sum_v u_v  >  sum_g count_g w_g(u),
    P2[g]     w_g(u) = the most that items of sum t[v,g] <= T are worth on a device of kind g    (a knapsack)

for every device holds at most w_g(u).  The best prices are the dual of the linear program over all ways to fill a
device (Gilmore and Gomory 1961); ways are made one at a time, by the knapsacks.  Times are rounded down to whole units
and the knapsacks solved exactly, so that whatever the linear program's solver says, the prices prove what they prove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pulp
from numpy.typing import NDArray

from autopart.planning.graphs.dagproblem import DagProblem
from autopart.planning.graphs.dagsolve import expression, quiet_pulp
from autopart.planning.solving.effort import IsOver, never

__all__ = ["packing_bound"]

NUM_UNITS = 50_000
"""that a device's time is divided into"""
MOST_CELLS = 2_000_000
"""of a knapsack: items times units"""
MOST_PER_DEVICE = 16
"""items, above which their grain hardly matters, and there are too many ways to fill a device"""
MOST_ROUNDS = 120
CLOSE = 1e-4
"""relative: how closely the bound is looked for"""
SURE = 1 + 1e-9
"""by how much the worth of all items must be more than that of all devices, against rounding"""

Floats = NDArray[np.float64]
Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packing:
    """The items' times in whole units, [kind, item]; more than ``num_units`` where the kind cannot hold the item."""

    weights: NDArray[np.int64]
    counts: tuple[int, ...]
    num_units: int


def packing_bound(problem: DagProblem, low: float, high: float, *, out_of_time: IsOver = never) -> float:
    """No placement has a smaller largest load; ``low`` if nothing better is found.

    Args:
        problem: precedence, memory and transfers are not regarded.
        low: a bound that is known.
        high: more than this need not be proven.
        out_of_time: ends the search.
    """
    proven, refuted = low, high
    fills: tuple[tuple[int, Items], ...] = ()
    middle = high  # most is gained where the incumbent can be proven at once
    while proven < refuted * (1 - CLOSE) and not out_of_time():
        packing = _packing(problem, middle)
        if packing is None:
            break
        too_much, fills = _is_too_much(packing, fills, out_of_time)
        if too_much and middle >= high:
            return high
        proven, refuted = (middle, refuted) if too_much else (proven, middle)
        middle = (proven + refuted) / 2
    return proven


def _packing(problem: DagProblem, seconds: float) -> _Packing | None:
    """The problem at a largest load; None if its knapsacks would take too long."""
    kinds = [g for g, kind in enumerate(problem.kinds) if kind.count]
    times = np.array(problem.times)[kinds]
    some = np.isfinite(times).any(axis=0) & (times.min(axis=0) > 0)
    num_items, counts = int(some.sum()), tuple(problem.kinds[g].count for g in kinds)
    if not 0 < num_items <= MOST_PER_DEVICE * sum(counts) or not seconds > 0:
        return None
    num_units = max(min(NUM_UNITS, MOST_CELLS // num_items), 100)
    units = np.where(times <= seconds, times * (num_units / seconds) * (1 - 1e-12), num_units + 1.0)
    weights = np.floor(units[:, some]).astype(np.int64)
    return _Packing(weights=weights, counts=counts, num_units=num_units)


def _is_too_much(
    packing: _Packing, fills: tuple[tuple[int, Items], ...], out_of_time: IsOver
) -> tuple[bool, tuple[tuple[int, Items], ...]]:
    """Whether the items are proven not to go in, and the ways to fill a device that were made."""
    if (packing.weights > packing.num_units).all(axis=0).any():
        return True, fills
    known = [(g, items) for g, items in fills if packing.weights[g, items].sum() <= packing.num_units]
    for _ in range(MOST_ROUNDS):
        prices, devices, total = _prices(packing, known)
        if total <= SURE or out_of_time():
            break
        best = [_fullest(packing, g, prices) for g in range(len(packing.counts))]
        worth = math.fsum(count * value for count, (value, _) in zip(packing.counts, best, strict=True))
        if math.fsum(prices) > worth * SURE:
            return True, tuple(known)
        new = [(g, items) for g, (value, items) in enumerate(best) if value > devices[g] * SURE]
        if not new:
            break
        known += new
    return False, tuple(known)


def _fullest(packing: _Packing, kind: int, prices: Floats) -> tuple[float, Items]:
    """What a device can hold at most by the prices, and the items."""
    weights, units = packing.weights[kind], packing.num_units
    items = np.flatnonzero((weights <= units) & (prices > 0))
    best, taken = np.zeros(units + 1), np.zeros((len(items), units + 1), dtype=np.bool_)
    for row, item in enumerate(items.tolist()):
        weight = int(weights[item])
        with_item = best[: units + 1 - weight] + prices[item]
        better = with_item > best[weight:]
        taken[row, weight:] = better
        best[weight:] = np.where(better, with_item, best[weight:])
    held, left = [], units
    for row in range(len(items) - 1, -1, -1):
        if taken[row, left]:
            held.append(int(items[row]))
            left -= int(weights[items[row]])
    return float(best[units]), np.array(sorted(held), dtype=np.int64)


def _prices(packing: _Packing, fills: Sequence[tuple[int, Items]]) -> tuple[Floats, Floats, float]:
    """The dearest items for which no known way to fill a device is worth more than it; all devices are worth 1."""
    num_items = packing.weights.shape[1]
    with quiet_pulp():
        program = pulp.LpProblem("packing", pulp.LpMaximize)
        item = [pulp.LpVariable(f"u_{number}", lowBound=0) for number in range(num_items)]
        device = [pulp.LpVariable(f"w_{number}", lowBound=0) for number in range(len(packing.counts))]
        program.setObjective(expression(item))
        program.addConstraint(expression(device, [float(count) for count in packing.counts]) == 1, "P1")
        alone = np.argwhere(packing.weights <= packing.num_units)
        for g, items in [*((int(g), np.array([number])) for g, number in alone), *fills]:
            chosen = [item[number] for number in items.tolist()]
            program.addConstraint(expression([*chosen, device[g]], [*[1.0] * len(chosen), -1.0]) <= 0)
        program.solve(pulp.HiGHS(msg=False, threads=1))
        if program.sol_status != pulp.LpSolutionOptimal:
            return np.zeros(num_items), np.zeros(len(packing.counts)), 0.0
        prices = np.maximum(np.array([each.value() or 0.0 for each in item]), 0.0)
        return prices, np.array([each.value() or 0.0 for each in device]), float(prices.sum())
