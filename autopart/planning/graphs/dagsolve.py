"""Runs a solver on one of the graph programs and says what may be believed of its answer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pulp

from autopart.schema.job import SolverName

__all__ = ["Answer", "expression", "quiet_pulp", "run_solver"]

LATE = 0.8
"""past this share of its time limit a solver's 'infeasible' is not believed: CBC has said so of feasible programs"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a solver found out."""

    outcome: Literal["optimal", "infeasible", "unknown"]
    has_values: bool
    """whether the variables hold a solution that the solver calls feasible; check it"""
    bound: float
    """no solution has a smaller objective, says the solver; inf if infeasible, -inf if it does not know"""
    solver: str
    remark: str = ""


@contextmanager
def quiet_pulp() -> Iterator[None]:
    """PuLP 3.3 announces the interface of PuLP 4 at every variable; both work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*PuLP.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="pulp.*")
        yield


def expression(variables: list[Any], coefficients: list[float] | None = None) -> Any:
    """LpAffineExpression from pairs: six times faster than lpSum."""
    return pulp.LpAffineExpression(list(zip(variables, coefficients or [1.0] * len(variables), strict=True)))


def _highs(time_limit_seconds: float, gap: float) -> Any:
    return pulp.HiGHS(msg=False, threads=1, timeLimit=time_limit_seconds, gapRel=gap, random_seed=1)


def _cbc(time_limit_seconds: float, gap: float) -> Any:
    return pulp.PULP_CBC_CMD(msg=False, threads=1, timeLimit=time_limit_seconds, gapRel=gap, options=["randomSeed 1"])


SOLVERS: dict[str, Callable[[float, float], Any]] = {"highs": _highs, "cbc": _cbc}

ORDERS: dict[SolverName, tuple[str, ...]] = {"auto": ("highs", "cbc"), "highs": ("highs",), "cbc": ("cbc",)}
"""HiGHS is 1.3 to 40 times faster than CBC on the graph programs (measured); CBC is asked if HiGHS fails"""


def run_solver(
    build: Callable[[], Any], *, solver: SolverName, gap: float, time_limit_seconds: float, clock: Callable[[], float]
) -> tuple[Any, Answer]:
    """Solves the program that ``build`` makes; another solver is asked only if one fails outright.

    Returns:
        The program with its variables' values, and what may be believed of them.
    """
    remark = ""
    started = clock()
    program = None
    for name in ORDERS[solver]:
        begun = clock()
        with quiet_pulp():
            program = build()
            # PuLP hands the rows over one by one before the solver's clock starts: about as long again
            left = time_limit_seconds - (clock() - started) - (clock() - begun)
            if left <= 0:
                break
            begun = clock()
            try:
                program.solve(SOLVERS[name](left, gap))
            except pulp.PulpSolverError as error:
                remark = f"{name} failed: {str(error).splitlines()[0]}"
                continue
        answer = _answer(program, name, late=clock() - begun >= LATE * left, remark=remark)
        if answer.outcome != "unknown" or answer.has_values or math.isfinite(answer.bound) or clock() - begun >= left:
            return program, answer
        remark = f"{name} gave no answer"
    last = ORDERS[solver][-1]
    return program, Answer(outcome="unknown", has_values=False, bound=-math.inf, solver=last, remark=remark)


def _answer(program: Any, name: str, *, late: bool, remark: str) -> Answer:
    status = program.sol_status  # PuLP's status says 'Optimal' after a time limit as well
    if status == pulp.LpSolutionOptimal:
        bound = float(pulp.value(program.objective))
        if name == "highs":
            bound = min(bound, _dual_bound(program))
        return Answer(outcome="optimal", has_values=True, bound=bound, solver=name, remark=remark)
    if status == pulp.LpSolutionInfeasible and not late:
        return Answer(outcome="infeasible", has_values=False, bound=math.inf, solver=name, remark=remark)
    bound = _dual_bound(program) if name == "highs" else -math.inf
    feasible = status == pulp.LpSolutionIntegerFeasible
    return Answer(outcome="unknown", has_values=feasible, bound=bound, solver=name, remark=remark)


def _dual_bound(program: Any) -> float:
    """HiGHS's bound; -inf for a program without integers or before the first relaxation is solved."""
    bound = float(program.solverModel.getInfo().mip_dual_bound)
    return bound if math.isfinite(bound) and program.isMIP() else -math.inf
