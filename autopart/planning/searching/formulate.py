"""The path integer program in PuLP: the only file that knows PuLP.  docs/model.md has the same rows by the same names.

Variables: x[a] in {0, 1} for every arc a; N[l] >= 0, stages that start at boundary l or later (only with row C6);
late, H[l] >= 0, seconds (only with row C12).

    minimise  sum of weight_a x_a + late                                  S(b): arcs with stage time >= b are left out
    C1        sum of x_a over arcs from the source = 1
    C2[k,h]   sum of x_a into node (k, h) = sum of x_a out of it          h: link class
    C3        sum of x_a over arcs into the end = 1
    C4[g]     sum of r_a x_a on group g <= devices of g                   r_a: devices of the stage
    C5        sum of x_a = number of stages, if it is prescribed
    C8        sum of x_a <= M, 1F1B only
    C6[l]     N[l+1] + 1 <= sum of Q_a x_a over arcs a that cover item l  1F1B memory, with
              N[l] = N[l+1] + sum of x_a over arcs that start at l        C6n[l]
    C7[g]     sum of r_a x_a on group g >= devices of g that must be used
    C9        sum of r_a price_g x_a <= budget                            objectives memory and cost, rent limits
    C11[g]    sum of r_a x_a on group g <= sum of room_a x_a on it        merged nodes only; room_a: of the node that
              a stage reached from elsewhere is the first on, 0 for one reached on its node
    C12[l]    late >= sum of update_a x_a over arcs a that cover item l - H[l]              where an update_a is not 0;
              H[l] = H[l-1] + sum of saves_a x_a over arcs that end at l  C12h[l]           (``updates``)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pulp

from autopart.planning.searching.chain import Path
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.solving.portfolio import race
from autopart.schema.job import SolverName

__all__ = ["Solution", "next_prices", "solve_path"]

Outcome = Literal["optimal", "infeasible", "unknown"]

SOLVER_TOLERANCE = 1e-6
"""what a solver's 'optimal' may be off by, relative; the bound allows for it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found out."""

    outcome: Outcome
    path: Path
    """indices of the chosen arcs in order; () if none was found"""
    objective_bound: float
    """no path has a smaller sum of weights; inf if infeasible, -inf if unknown"""
    solver: str
    remark: str
    """what other solvers failed to answer, else empty"""


@contextmanager
def _pulp_notes_off() -> Iterator[None]:
    """PuLP 3.3 announces the interface of PuLP 4 at every variable; both work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*PuLP.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="pulp.*")
        yield


def solve_path(
    instance: Instance, arcs: Arcs, *, at_least: tuple[int, ...] | None, solver: SolverName,
    time_limit_seconds: float, clock: Callable[[], float], gap: float = 0.0,
) -> Solution:
    """S(b) over the arcs given: the least sum of weights of a path that keeps counts and memory, with its path.

    A path that is found is followed arc by arc before it is believed; with ``gap`` it may be so much above the bound.
    """
    if not len(arcs):
        return Solution(outcome="infeasible", path=(), objective_bound=math.inf, solver="none", remark="")
    with _pulp_notes_off():
        problem = _formulate(instance, arcs, at_least)
        answer, given = race(
            problem, solver, time_limit_seconds=time_limit_seconds, gap=gap, clock=clock,
            accept=lambda each: each.word == "infeasible"
            or (each.word == "optimal" and bool(_path(instance, arcs, each.values))),
        )
    silent = [each.solver for each in given if each is not answer]
    remark = f"{' and '.join(silent)} gave no answer in {time_limit_seconds:.1f} s" if silent else ""
    if answer is None:
        paths = [path for each in given if (path := _path(instance, arcs, each.values))]
        best = min(paths, key=arcs.sum_along, default=())
        return Solution(
            outcome="unknown", path=best, objective_bound=-math.inf, solver=given[-1].solver, remark=remark
        )
    if answer.word == "infeasible":
        return Solution(outcome="infeasible", path=(), objective_bound=math.inf, solver=answer.solver, remark=remark)
    path = _path(instance, arcs, answer.values)
    total = arcs.sum_along(path) / (1 + gap) * (1 - SOLVER_TOLERANCE)
    return Solution(outcome="optimal", path=path, objective_bound=total, solver=answer.solver, remark=remark)


def _path(instance: Instance, arcs: Arcs, names: tuple[str, ...]) -> Path:
    """The chosen arcs in order, or () if what the solver calls a solution is no path or takes too many devices."""
    picked = [int(name[2:]) for name in names if name.startswith("x_")]
    path = tuple(sorted(picked, key=lambda index: int(arcs.first[index])))
    nodes = [(0, instance.num_classes), *((int(arcs.last[index]), int(arcs.after[index])) for index in path)]
    starts = [(int(arcs.first[index]), int(arcs.before[index])) for index in path]
    used = np.bincount(arcs.group[picked], weights=arcs.width[picked], minlength=instance.num_groups)
    fits = bool((used <= np.asarray(instance.counts)).all())
    return path if nodes[:-1] == starts and nodes[-1][0] == instance.end and fits else ()


def _formulate(instance: Instance, arcs: Arcs, at_least: tuple[int, ...] | None) -> Any:
    """The program; variable x_a is arc a."""
    problem = pulp.LpProblem("path", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x_{index}", cat="Binary") for index in range(len(arcs))]
    unit = 1000.0 / max(float(arcs.weight.max()), 1e-300)
    objective = [(v, unit * float(w)) for v, w in zip(x, arcs.weight, strict=True)]
    late = pulp.LpVariable("late", lowBound=0)
    problem.setObjective(pulp.LpAffineExpression([*objective, (late, 1.0)] if arcs.are_late else objective))
    _flow_rows(problem, instance, arcs, x)
    _count_rows(problem, instance, arcs, x, at_least or (0,) * instance.num_groups)
    most_needed = min(instance.num_microbatches, instance.num_devices)
    if instance.schedule == "1f1b" and (arcs.most_in_flight < most_needed).any():
        _memory_rows(problem, instance, arcs, x)
    if arcs.are_late:
        _update_rows(problem, instance, arcs, x, late, unit)
    return problem


def _expression(variables: list[Any], coefficients: list[float] | None = None) -> Any:
    """LpAffineExpression from pairs: six times faster than lpSum."""
    ones = [1.0] * len(variables)
    return pulp.LpAffineExpression(list(zip(variables, ones if coefficients is None else coefficients, strict=True)))


def _flow_rows(problem: Any, instance: Instance, arcs: Arcs, x: list[Any]) -> None:
    begin: list[Any] = []
    finish: list[Any] = []
    nodes: dict[tuple[int, int], tuple[list[Any], list[float]]] = {}
    rows = zip(arcs.first.tolist(), arcs.last.tolist(), arcs.after.tolist(), arcs.before.tolist(), x, strict=True)
    for first, last, after, before, variable in rows:
        if first == 0:
            begin.append(variable)
        else:
            _append(nodes, (first, before), variable, -1.0)
        if last == instance.end:
            finish.append(variable)
        else:
            _append(nodes, (last, after), variable, 1.0)
    problem.addConstraint(_expression(begin) == 1, "C1")
    for (boundary, link_class), (variables, signs) in sorted(nodes.items()):
        problem.addConstraint(_expression(variables, signs) == 0, f"C2_{boundary}_{link_class}")
    problem.addConstraint(_expression(finish) == 1, "C3")


def _append(
    nodes: dict[tuple[int, int], tuple[list[Any], list[float]]], node: tuple[int, int], variable: Any, sign: float
) -> None:
    variables, signs = nodes.setdefault(node, ([], []))
    variables.append(variable)
    signs.append(sign)


def _count_rows(problem: Any, instance: Instance, arcs: Arcs, x: list[Any], at_least: tuple[int, ...]) -> None:
    for group, count in enumerate(instance.counts):
        chosen = (arcs.group == group).nonzero()[0]
        on_group = _expression([x[index] for index in chosen.tolist()], arcs.width[chosen].astype(float).tolist())
        problem.addConstraint(on_group <= count, f"C4_{group}")
        if at_least[group]:
            problem.addConstraint(on_group >= at_least[group], f"C7_{group}")
        if group in instance.scattered:
            opened = (arcs.width[chosen] - arcs.room[chosen]).astype(float).tolist()
            problem.addConstraint(_expression([x[index] for index in chosen.tolist()], opened) <= 0, f"C11_{group}")
    if instance.num_stages is not None:
        problem.addConstraint(_expression(x) == instance.num_stages, "C5")
    if instance.most_stages < sum(instance.counts):
        problem.addConstraint(_expression(x) <= instance.most_stages, "C8")
    if instance.prices:
        paid = np.asarray(instance.prices)[arcs.group] * arcs.width / max(instance.budget, 1e-300)
        problem.addConstraint(_expression(x, paid.tolist()) <= 1 + 1e-9, "C9")


def _memory_rows(problem: Any, instance: Instance, arcs: Arcs, x: list[Any]) -> None:
    """Exact for integer x: one arc covers item l, and its stage keeps min(M, N[l+1] + 1) micro-batches."""
    end = instance.end
    stages_from = [pulp.LpVariable(f"N_{boundary}", lowBound=0) for boundary in range(end + 1)]
    problem.addConstraint(_expression([stages_from[end]]) == 0, f"C6n_{end}")
    for item in range(end):
        starting = [x[index] for index in (arcs.first == item).nonzero()[0].tolist()]
        signs = [1.0, -1.0, *[-1.0] * len(starting)]
        count = _expression([stages_from[item], stages_from[item + 1], *starting], signs)
        problem.addConstraint(count == 0, f"C6n_{item}")
        covering = ((arcs.first <= item) & (arcs.last > item)).nonzero()[0].tolist()
        allowed = [float(arcs.most_in_flight[index]) for index in covering]
        room = _expression([*(x[index] for index in covering), stages_from[item + 1]], [*allowed, -1.0])
        problem.addConstraint(room >= 1, f"C6_{item}")


def _update_rows(problem: Any, instance: Instance, arcs: Arcs, x: list[Any], late: Any, unit: float) -> None:
    """Exact for integer x: the stage that covers item l ends its optimizer ``late`` after the first one or earlier.

    ``unit``: of the objective in a second, so that solvers' tolerances are as small beside the rows.
    """
    saves, update = unit * arcs.saves, unit * arcs.update
    saved = [pulp.LpVariable(f"H_{boundary}", lowBound=0) for boundary in range(instance.end)]
    problem.addConstraint(_expression([saved[0]]) == 0, "C12h_0")
    for item in range(instance.end):
        if item:
            ending = (arcs.last == item).nonzero()[0].tolist()
            signs = [1.0, -1.0, *(-saves[ending]).tolist()]
            total = _expression([saved[item], saved[item - 1], *(x[index] for index in ending)], signs)
            problem.addConstraint(total == 0, f"C12h_{item}")
        covering = ((arcs.first <= item) & (arcs.last > item) & (update > 0)).nonzero()[0].tolist()
        if covering:
            added = (-update[covering]).tolist()
            row = _expression([late, saved[item], *(x[index] for index in covering)], [1.0, 1.0, *added])
            problem.addConstraint(row >= 0, f"C12_{item}")


def next_prices(
    cuts: list[tuple[float, np.ndarray[Any, Any]]], center: np.ndarray[Any, Any], scale: np.ndarray[Any, Any],
    free: np.ndarray[Any, Any], box: float,
) -> tuple[np.ndarray[Any, Any], float]:
    """The prices in a box around ``center`` at which the least of the cuts c + s u is greatest, and that value.

    ``center`` and ``box`` are in units of ``scale``; prices are not negative but where ``free``.
    """
    with _pulp_notes_off():
        problem = pulp.LpProblem("prices", pulp.LpMaximize)
        floor = [value - box if is_free else max(0.0, value - box) for value, is_free in zip(center, free, strict=True)]
        prices = [
            pulp.LpVariable(f"u_{number}", lowBound=float(low), upBound=float(value + box))
            for number, (low, value) in enumerate(zip(floor, center, strict=True))
        ]
        hope, unit = pulp.LpVariable("hope"), max(abs(cuts[0][0]), 1e-300)
        problem.setObjective(pulp.LpAffineExpression([(hope, 1.0)]))
        for constant, slope in cuts:
            terms = [-float(each) for each in slope * scale / unit]
            problem.addConstraint(_expression([hope, *prices], [1.0, *terms]) <= float(constant / unit))
        problem.solve(pulp.HiGHS(msg=False))
        return np.asarray([price.value() for price in prices]) * scale, float(hope.value()) * unit
