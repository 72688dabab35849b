"""The path integer program in PuLP: the only file that knows PuLP.  docs/model.md has the same rows by the same names.

Variables: x[a] in {0, 1} for every arc a; N[l] >= 0, stages that start at boundary l or later (only with row C6).

    minimise  sum of weight_a x_a                                         S(b): arcs with stage time >= b are left out
    C1        sum of x_a over arcs from the source = 1
    C2[k,g]   sum of x_a into node (k, g) = sum of x_a out of it
    C3        sum of x_a over arcs into the end = 1
    C4[g]     sum of x_a on group g <= devices of g
    C5        sum of x_a = number of stages, if it is prescribed
    C8        sum of x_a <= M, 1F1B only
    C6[l]     N[l+1] + 1 <= sum of Q_a x_a over arcs a that cover item l  1F1B memory, with
              N[l] = N[l+1] + sum of x_a over arcs that start at l        C6n[l]
    C7[g]     sum of x_a on group g >= devices of g that must be used
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pulp

from autopart.planning.arcs import Arcs, Instance
from autopart.planning.chain import Path
from autopart.schema.job import SolverName

__all__ = ["Solution", "solve_path"]

Outcome = Literal["optimal", "infeasible", "unknown"]

OUTCOMES: dict[int, Outcome] = {
    pulp.LpSolutionOptimal: "optimal",
    pulp.LpSolutionInfeasible: "infeasible",
    pulp.LpSolutionIntegerFeasible: "unknown",
    pulp.LpSolutionNoSolutionFound: "unknown",
    pulp.LpSolutionUnbounded: "unknown",
}
"""PuLP's sol_status; its status says 'Optimal' after a time limit as well and is not read"""

SOLVER_TOLERANCE = 1e-6
"""what a solver's 'optimal' may be off by, relative; the bound allows for it"""

LATE = 0.8
"""CBC has called feasible programs infeasible as its time ran out: past this share of it nothing is believed"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found out."""

    outcome: Outcome
    path: Path
    """indices of the chosen arcs in order; () unless optimal"""
    objective_bound: float
    """no path has a smaller sum of weights; inf if infeasible, -inf if unknown"""
    solver: str
    remark: str
    """why another solver than the first was asked, else empty"""


def _cbc(time_limit_seconds: float) -> Any:
    return pulp.PULP_CBC_CMD(msg=False, threads=1, timeLimit=time_limit_seconds, gapRel=0.0, options=["randomSeed 1"])


def _highs(time_limit_seconds: float) -> Any:
    return pulp.HiGHS(
        msg=False, threads=1, timeLimit=time_limit_seconds, gapRel=0.0, random_seed=1, mip_feasibility_tolerance=1e-7
    )


SOLVERS: dict[str, Callable[[float], Any]] = {"cbc": _cbc, "highs": _highs}

ORDERS: dict[SolverName, tuple[str, ...]] = {"auto": ("cbc", "highs"), "cbc": ("cbc",), "highs": ("highs",)}


@contextmanager
def _pulp_notes_off() -> Iterator[None]:
    """PuLP 3.3 announces the interface of PuLP 4 at every variable; both work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*PuLP.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="pulp.*")
        yield


def solve_path(
    instance: Instance, arcs: Arcs, *, at_least: tuple[int, ...] | None, solver: SolverName,
    time_limit_seconds: float, clock: Callable[[], float],
) -> Solution:
    """S(b) over the arcs given: the least sum of weights of a path that keeps counts and memory, with its path."""
    if not len(arcs):
        return Solution(outcome="infeasible", path=(), objective_bound=math.inf, solver="none", remark="")
    remark = ""
    started = clock()
    for name in ORDERS[solver]:
        left = max(time_limit_seconds - (clock() - started), 1.0)
        begun = clock()
        with _pulp_notes_off():
            problem, chosen = _formulate(instance, arcs, at_least)
            try:
                problem.solve(SOLVERS[name](left))
            except pulp.PulpSolverError as error:
                remark = f"{name} failed: {str(error).splitlines()[0]}"
                continue
        outcome = OUTCOMES[problem.sol_status]
        late = clock() - begun >= LATE * left
        if outcome == "infeasible" and not late:
            return Solution(outcome=outcome, path=(), objective_bound=math.inf, solver=name, remark=remark)
        if outcome == "optimal" and (path := _path(instance, arcs, chosen)):
            total = float(arcs.weight[list(path)].sum()) * (1 - SOLVER_TOLERANCE)
            return Solution(outcome=outcome, path=path, objective_bound=total, solver=name, remark=remark)
        remark = f"{name} gave no answer in {left:.1f} s"
    return Solution(outcome="unknown", path=(), objective_bound=-math.inf, solver=ORDERS[solver][-1], remark=remark)


def _path(instance: Instance, arcs: Arcs, chosen: list[Any]) -> Path:
    """The chosen arcs in order, or () if what the solver calls a solution is no path."""
    picked = [index for index, variable in enumerate(chosen) if (variable.value() or 0.0) > 0.5]
    path = tuple(sorted(picked, key=lambda index: int(arcs.first[index])))
    nodes = [(0, instance.num_groups), *((int(arcs.last[index]), int(arcs.group[index])) for index in path)]
    starts = [(int(arcs.first[index]), int(arcs.before[index])) for index in path]
    return path if nodes[:-1] == starts and nodes[-1][0] == instance.end else ()


def _formulate(instance: Instance, arcs: Arcs, at_least: tuple[int, ...] | None) -> tuple[Any, list[Any]]:
    """The program and its arc variables, in the order of the arcs."""
    problem = pulp.LpProblem("path", pulp.LpMinimize)
    x = [pulp.LpVariable(f"x_{index}", cat="Binary") for index in range(len(arcs))]
    unit = 1000.0 / max(float(arcs.weight.max()), 1e-300)
    problem.setObjective(pulp.LpAffineExpression([(v, unit * float(w)) for v, w in zip(x, arcs.weight, strict=True)]))
    _flow_rows(problem, instance, arcs, x)
    _count_rows(problem, instance, arcs, x, at_least or (0,) * instance.num_groups)
    most_needed = min(instance.num_microbatches, instance.num_devices)
    if instance.schedule == "1f1b" and (arcs.most_in_flight < most_needed).any():
        _memory_rows(problem, instance, arcs, x)
    return problem, x


def _expression(variables: list[Any], coefficients: list[float] | None = None) -> Any:
    """LpAffineExpression from pairs: six times faster than lpSum."""
    return pulp.LpAffineExpression(list(zip(variables, coefficients or [1.0] * len(variables), strict=True)))


def _flow_rows(problem: Any, instance: Instance, arcs: Arcs, x: list[Any]) -> None:
    begin: list[Any] = []
    finish: list[Any] = []
    nodes: dict[tuple[int, int], tuple[list[Any], list[float]]] = {}
    rows = zip(arcs.first.tolist(), arcs.last.tolist(), arcs.group.tolist(), arcs.before.tolist(), x, strict=True)
    for first, last, group, before, variable in rows:
        if first == 0:
            begin.append(variable)
        else:
            _append(nodes, (first, before), variable, -1.0)
        if last == instance.end:
            finish.append(variable)
        else:
            _append(nodes, (last, group), variable, 1.0)
    problem.addConstraint(_expression(begin) == 1, "C1")
    for (boundary, group), (variables, signs) in sorted(nodes.items()):
        problem.addConstraint(_expression(variables, signs) == 0, f"C2_{boundary}_{group}")
    problem.addConstraint(_expression(finish) == 1, "C3")


def _append(
    nodes: dict[tuple[int, int], tuple[list[Any], list[float]]], node: tuple[int, int], variable: Any, sign: float
) -> None:
    variables, signs = nodes.setdefault(node, ([], []))
    variables.append(variable)
    signs.append(sign)


def _count_rows(problem: Any, instance: Instance, arcs: Arcs, x: list[Any], at_least: tuple[int, ...]) -> None:
    for group, count in enumerate(instance.counts):
        on_group = [x[index] for index in (arcs.group == group).nonzero()[0].tolist()]
        problem.addConstraint(_expression(on_group) <= count, f"C4_{group}")
        if at_least[group]:
            problem.addConstraint(_expression(on_group) >= at_least[group], f"C7_{group}")
    if instance.num_stages is not None:
        problem.addConstraint(_expression(x) == instance.num_stages, "C5")
    if instance.most_stages < sum(instance.counts):
        problem.addConstraint(_expression(x) <= instance.most_stages, "C8")


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
