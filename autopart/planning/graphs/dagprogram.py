"""The integer program of placements without contiguity, in PuLP; docs/model.md has the same rows by the same names.

Variables: x[v,d] in {0, 1}, item v on device d; h[e,d] and l[e,d], whether d has some and all items of net e; tau.

    minimise tau
    E1[v]      sum over devices of x[v,d] = 1
    E2[d]      sum t[v,d] x[v,d] + factor_d sum c_e (h[e,d] - l[e,d]) <= tau
    E3[d]      sum m_v x[v,d] <= capacity of d
    E4[e,d,v]  l[e,d] <= x[v,d] <= h[e,d]                for every item v of net e
    E5         equal devices: the i-th largest item is on one of the first i of them

tau lies between a known bound and the incumbent less the gap: if that is infeasible, the incumbent is proven.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pulp

from autopart.planning.graphs.dagproblem import DagProblem, Part
from autopart.planning.graphs.dagsolve import Answer, expression, run_solver
from autopart.schema.job import SolverName

__all__ = ["Verdict", "improve_or_prove"]

TOLERANCE = 1e-6
"""what a solver's objective may be off by, relative"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the program showed."""

    parts: tuple[Part, ...]
    """a placement better than the incumbent, as the solver says; () if none was found"""
    bound: float
    """no placement has a smaller largest load, as the solver says; -inf if it does not know"""
    solver: str
    remark: str


def improve_or_prove(
    problem: DagProblem, *, incumbent: float, bound: float, gap: float, solver: SolverName,
    time_limit_seconds: float, clock: Callable[[], float],
) -> Verdict:
    """A placement better than the incumbent by more than the gap, or a bound that says that there is none."""
    cutoff = incumbent / (1 + gap)
    devices = [g for g, kind in enumerate(problem.kinds) for _ in range(kind.count)]
    unit = max(incumbent, 1e-300)
    variables: dict[tuple[int, int], Any] = {}

    def build() -> Any:
        variables.clear()
        return _program(problem, devices, variables, low=bound / unit, high=cutoff / unit, unit=unit)

    _, answer = run_solver(build, solver=solver, gap=gap / 2, time_limit_seconds=time_limit_seconds, clock=clock)
    return Verdict(
        parts=_parts(problem, devices, variables) if answer.has_values else (),
        bound=_bound(answer, cutoff, unit), solver=answer.solver, remark=answer.remark,
    )


def _bound(answer: Answer, cutoff: float, unit: float) -> float:
    if answer.outcome == "infeasible":
        return cutoff * (1 - TOLERANCE)
    return answer.bound * unit * (1 - TOLERANCE) if math.isfinite(answer.bound) else -math.inf


def _parts(problem: DagProblem, devices: list[int], x: dict[tuple[int, int], Any]) -> tuple[Part, ...]:
    held: list[list[int]] = [[] for _ in devices]
    for (item, device), variable in sorted(x.items()):
        if (variable.value() or 0.0) > 0.5:
            held[device].append(item)
    if sorted(item for items in held for item in items) != list(range(problem.num_items)):
        return ()
    return tuple(Part(kind=g, items=tuple(items)) for g, items in zip(devices, held, strict=True) if items)


def _program(
    problem: DagProblem, devices: list[int], x: dict[tuple[int, int], Any], *, low: float, high: float, unit: float
) -> Any:
    program = pulp.LpProblem("placement", pulp.LpMinimize)
    tau = pulp.LpVariable("tau", lowBound=low, upBound=high)
    program.setObjective(expression([tau]))
    allowed = _allowed(problem, devices)
    for item, device in sorted(allowed):
        x[item, device] = pulp.LpVariable(f"x_{item}_{device}", cat="Binary")
    for item in range(problem.num_items):
        on = [x[item, device] for device in range(len(devices)) if (item, device) in x]
        program.addConstraint(expression(on) == 1, f"E1_{item}")
    for device, g in enumerate(devices):
        here = [item for item in range(problem.num_items) if (item, device) in x]
        terms = [(x[item, device], problem.times[g][item] / unit) for item in here]
        terms += _transfer_terms(program, problem, device, problem.kinds[g].transfer_factor / unit, x)
        load = expression([variable for variable, _ in terms] + [tau], [value for _, value in terms] + [-1.0])
        program.addConstraint(load <= 0, f"E2_{device}")
        capacity = problem.kinds[g].capacity_bytes
        if math.fsum(problem.sizes[item] for item in here) > capacity:
            room = expression([x[item, device] for item in here], [problem.sizes[item] / capacity for item in here])
            program.addConstraint(room <= 1, f"E3_{device}")
    return program


def _allowed(problem: DagProblem, devices: list[int]) -> set[tuple[int, int]]:
    """Pairs (item, device) that the kind can run and hold, with row E5 built in."""
    first = {g: devices.index(g) for g in set(devices)}
    heavy = sorted(range(problem.num_items), key=lambda item: (-problem.times[devices[0]][item], item))
    rank = {item: number for number, item in enumerate(heavy)}
    return {
        (item, device)
        for device, g in enumerate(devices)
        for item in range(problem.num_items)
        if math.isfinite(problem.times[g][item]) and problem.sizes[item] <= problem.kinds[g].capacity_bytes
        and device - first[g] <= rank[item]
    }


def _transfer_terms(
    program: Any, problem: DagProblem, device: int, factor: float, x: dict[tuple[int, int], Any]
) -> list[tuple[Any, float]]:
    """Rows E4 of a device, and what its transfers add to its load."""
    terms: list[tuple[Any, float]] = []
    for index, net in enumerate(problem.nets if factor > 0 else ()):
        some = pulp.LpVariable(f"h_{index}_{device}", lowBound=0, upBound=1)
        every = pulp.LpVariable(f"l_{index}_{device}", lowBound=0, upBound=1)
        for pin in net.pins:
            if (pin, device) in x:
                program.addConstraint(expression([x[pin, device], some], [1.0, -1.0]) <= 0)
                program.addConstraint(expression([every, x[pin, device]], [1.0, -1.0]) <= 0)
            else:
                program.addConstraint(expression([every]) <= 0)
        terms += [(some, factor * net.cost), (every, -factor * net.cost)]
    return terms
