"""How good the best plan is: threshold integer programs, from the top down.

The objective is  sum of weights + R * largest stage time  (R = M - 1).  Let S(b) be the least sum of weights over plans
whose stage times are all below b: one path program.  Given an incumbent of objective z and the wanted gap,
target = z / (1 + gap).  Every plan whose largest stage time lies in [b', b) costs at least S(b) + R b'; with

    b' = (target - S(b)) / R

that is no less than the target, so only plans below b' are left, and so on until none is (S(b) infeasible) or none can
beat the target (S(b) + R floor >= target).  Then no plan at all costs less than the target: it is the bound.  A cheaper
path found on the way becomes the incumbent.  Lagrangian prices bring b down and thin the arcs before each program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopart.planning.searching.chain import Path, path_objective
from autopart.planning.searching.formulate import Solution, solve_path
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.prices import price_arcs
from autopart.planning.solving.effort import Effort

__all__ = ["Certificate", "prove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A bound on all plans of an instance, and the best path met while proving it."""

    bound_seconds: float
    path: Path
    """() if none beats the incumbent that was given"""
    closed: bool
    """no plan can be better than ``incumbent / (1 + gap)``"""
    num_programs: int
    solver: str
    remark: str


@dataclass(slots=True)
class _Search:
    """Where the search stands: the incumbent, the threshold, and the arcs below it."""

    instance: Instance
    effort: Effort
    at_least: tuple[int, ...] | None
    best: float
    path: Path = ()
    threshold: float = math.inf
    num_programs: int = 0
    solver: str = "none"
    remark: str = ""

    @property
    def target(self) -> float:
        """What a plan must beat to matter."""
        return self.best / (1 + self.effort.gap)

    @property
    def cutoff(self) -> float:
        """Sum of weights from which no plan can beat the target."""
        return self.target - self.instance.repeats * self.instance.floor_seconds

    def lower(self, sum_bound: float) -> float:
        """The threshold above which a plan with at least this sum of weights cannot beat the target."""
        return (self.target - sum_bound) / self.instance.repeats if self.instance.repeats else self.threshold

    def meet(self, path: Path, indices: Sequence[int]) -> None:
        """Take a path of the program (if it found one) as incumbent if it is better."""
        if not path:
            return
        whole = tuple(indices[arc] for arc in path)
        objective = path_objective(self.instance, self.instance.arcs, whole)
        if objective < self.best:
            self.best, self.path = objective, whole

    def certify(self, bound: float, *, closed: bool) -> Certificate:
        """What has been proven."""
        return Certificate(
            bound_seconds=bound, path=self.path, closed=closed, num_programs=self.num_programs,
            solver=self.solver, remark=self.remark,
        )


def prove(
    instance: Instance, incumbent: float, effort: Effort, *,
    at_least: tuple[int, ...] | None = None, at_least_one_program: bool = False,
) -> Certificate:
    """A lower bound on the objective of all plans of the instance, from threshold programs.

    ``incumbent`` is the objective of the best plan known (inf: none).  With ``at_least_one_program`` an integer
    program is solved even where prices alone prove the bound.
    """
    search = _Search(instance, effort, at_least, incumbent)
    while True:
        below = instance.arcs.seconds < search.threshold
        arcs = instance.arcs.keep(below)
        priced = price_arcs(instance, arcs, search.cutoff, at_least, out_of_time=effort.is_over)
        if priced.bound >= search.cutoff and (search.num_programs or not at_least_one_program):
            return search.certify(search.target, closed=True)
        lower = search.lower(priced.bound)
        if priced.bound < search.cutoff and lower < search.threshold * (1 - 1e-3) and not effort.is_over():
            search.threshold = lower
            continue
        open_bound = min(search.target, priced.bound + instance.repeats * instance.floor_seconds)
        if effort.is_over():
            return search.certify(open_bound, closed=False)
        useful = priced.through < max(search.cutoff, priced.bound * (1 + 1e-9))
        solution = _solve(search, arcs.keep(useful), priced.bound)
        if solution.outcome == "unknown":
            search.meet(solution.path, np.flatnonzero(below)[useful].tolist())
            return search.certify(open_bound, closed=False)
        # paths with an arc that was left out cost at least the cutoff
        sum_bound = min(solution.objective_bound, search.cutoff)
        search.meet(solution.path, np.flatnonzero(below)[useful].tolist())
        if not instance.repeats:
            return search.certify(sum_bound, closed=True)
        if sum_bound >= search.cutoff:
            return search.certify(search.target, closed=True)
        search.threshold = min(search.threshold, search.lower(sum_bound))


SHARE_OF_GAP = 0.25
"""of the allowed gap, that a single program may leave open"""


def _solve(search: _Search, arcs: Arcs, sum_bound: float) -> Solution:
    allowed = SHARE_OF_GAP * search.effort.gap * search.target / max(sum_bound, 1e-300)
    solution = solve_path(
        search.instance, arcs, at_least=search.at_least, solver=search.effort.solver,
        time_limit_seconds=max(search.effort.left_seconds(), 0.1), clock=search.effort.clock,
        gap=min(allowed, 0.01) if math.isfinite(allowed) else 0.0,
    )
    search.num_programs += 1
    search.solver = solution.solver if solution.solver != "none" else search.solver
    search.remark = search.remark or solution.remark
    return solution
