"""The fractional balance: what no placement of any kind can beat, and the prices of devices that prove it.

    minimise tau    sum over kinds of x[v,g] = 1                      D1[v]
                    sum over items of t[v,g] x[v,g] <= count_g tau    D2[g]
                    sum over items of m_v x[v,g] <= count_g cap_g     D3[g]

The dual prices p of rows D2 and q of rows D3, with sum of count_g p_g = 1, give the bound

    sum_v min_g (p_g t[v,g] + q_g m_v)  -  sum_g q_g count_g cap_g

which is computed here and holds for any prices that are not negative: the solver is not believed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pulp
from numpy.typing import NDArray

from autopart.planning.graphs.dagproblem import DagProblem
from autopart.planning.graphs.dagsolve import expression, quiet_pulp

__all__ = ["balance_bound", "balance_prices", "simple_prices"]

Prices = tuple[NDArray[np.float64], NDArray[np.float64]]


def simple_prices(problem: DagProblem) -> Prices:
    """A device's time is worth the share of all the work that it could do in it."""
    totals = [math.fsum(time for time in row if math.isfinite(time)) for row in problem.times]
    return _scaled(problem, np.array([1.0 / total if total > 0 else 0.0 for total in totals])), np.zeros(len(totals))


def _scaled(problem: DagProblem, prices: NDArray[np.float64]) -> NDArray[np.float64]:
    total = float(sum(kind.count * price for kind, price in zip(problem.kinds, prices, strict=True)))
    return prices / total if total > 0 else prices


def balance_prices(problem: DagProblem) -> Prices:
    """The dual prices of the program above, of a device's time and of a byte of it."""
    with quiet_pulp():
        program, time_rows, memory_rows = _program(problem)
        program.solve(pulp.HiGHS(msg=False, threads=1))
    if program.sol_status != pulp.LpSolutionOptimal:
        return simple_prices(problem)
    time = np.zeros(len(problem.kinds))
    memory = np.zeros(len(problem.kinds))
    scale = max(problem.sizes, default=0.0) or 1.0
    for g, row in time_rows.items():
        time[g] = abs(row.pi or 0.0)
    for g, row in memory_rows.items():
        memory[g] = abs(row.pi or 0.0) / scale
    total = float(sum(kind.count * price for kind, price in zip(problem.kinds, time, strict=True)))
    return (time / total, memory / total) if total > 0 else simple_prices(problem)


def _program(problem: DagProblem) -> tuple[Any, dict[int, Any], dict[int, Any]]:
    """The program, and its rows D2 and D3 by kind."""
    program = pulp.LpProblem("balance", pulp.LpMinimize)
    tau = pulp.LpVariable("tau", lowBound=0)
    program.setObjective(expression([tau]))
    scale = max(problem.sizes, default=0.0) or 1.0
    rows: list[list[tuple[int, Any]]] = [[] for _ in problem.kinds]
    time_rows: dict[int, Any] = {}
    memory_rows: dict[int, Any] = {}
    for item in range(problem.num_items):
        shares = []
        for g, kind in enumerate(problem.kinds):
            if kind.count and math.isfinite(problem.times[g][item]):
                shares.append(pulp.LpVariable(f"x_{item}_{g}", lowBound=0))
                rows[g].append((item, shares[-1]))
        program.addConstraint(expression(shares) == 1, f"D1_{item}")
    for g, kind in enumerate(problem.kinds):
        if not rows[g]:
            continue
        load = expression([x for _, x in rows[g]] + [tau], [problem.times[g][i] for i, _ in rows[g]] + [-kind.count])
        time_rows[g] = load <= 0
        program.addConstraint(time_rows[g], f"D2_{g}")
        if math.isfinite(kind.capacity_bytes):
            room = expression([x for _, x in rows[g]], [problem.sizes[item] / scale for item, _ in rows[g]])
            memory_rows[g] = room <= kind.count * kind.capacity_bytes / scale
            program.addConstraint(memory_rows[g], f"D3_{g}")
    return program, time_rows, memory_rows


def balance_bound(problem: DagProblem, prices: Prices) -> float:
    """No placement has a smaller largest load: by these prices, and by the largest item on its fastest kind."""
    time, memory = prices
    present = [g for g, kind in enumerate(problem.kinds) if kind.count]
    times = np.array(problem.times)[present]
    with np.errstate(invalid="ignore"):
        charge = np.where(np.isfinite(times), time[present][:, None] * times, np.inf)
    charge = charge + memory[present][:, None] * np.array(problem.sizes)
    rent = sum(
        memory[g] * problem.kinds[g].count * problem.kinds[g].capacity_bytes for g in present if memory[g] > 0
    )
    by_prices = float(charge.min(axis=0).sum() - rent) * (1 - 1e-12)
    return max(by_prices, float(times.min(axis=0).max(initial=0.0)))
