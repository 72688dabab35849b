"""Bisection on the largest stage time, where the dynamic program is not exact: a good path, and a proven floor.

A path program with stages below a threshold has few arcs, and is quickly found infeasible where it is: then no plan's
largest stage time is below that threshold.  Where it is feasible its path becomes the incumbent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from autopart.planning.arcs import Instance
from autopart.planning.bounds import Effort
from autopart.planning.chain import Path, path_objective
from autopart.planning.formulate import Solution, solve_path
from autopart.planning.prices import price_arcs

__all__ = ["Bracket", "bracket"]

PATH_GAP = 0.02
"""of the sum of weights: a path that is so good will do, the largest stage time weighs more"""
PATIENCE_SECONDS = 6.0
"""for one program; what is not settled by then is left open"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """What a bisection found."""

    path: Path
    """() if none beats the incumbent that was given"""
    floor_seconds: float
    """no plan's largest stage time is below"""
    num_programs: int


def bracket(
    instance: Instance, incumbent: float, effort: Effort, at_least: tuple[int, ...] | None = None
) -> Bracket:
    """Narrow down the largest stage time of the best plan; ``incumbent`` is the best objective known (inf: none)."""
    arcs, objective = instance.arcs, incumbent
    best: Path = ()
    high = float(arcs.seconds.max(initial=0.0)) * 1.001
    if math.isfinite(incumbent):
        high = min(high, incumbent / (instance.repeats + 1))
    low, num_programs, tight = instance.floor_seconds, 0, max(effort.gap / 2, 1e-4)
    while instance.repeats and high > low * (1 + tight) and effort.left_seconds() > 0:
        middle = _middle(low, high, known=math.isfinite(objective))
        solution, indices = _below(instance, middle, objective, effort, at_least)
        num_programs += 1
        if solution.path:
            path = tuple(indices[list(solution.path)].tolist())
            if path_objective(instance, arcs, path) < objective:
                best, objective = path, path_objective(instance, arcs, path)
            high = float(arcs.seconds[list(path)].max())
        elif solution.outcome == "infeasible":
            low = middle
        else:
            high = middle
    return Bracket(path=best, floor_seconds=low, num_programs=num_programs)


def _middle(low: float, high: float, *, known: bool) -> float:
    """The next threshold: near the low end as long as no path is known, for programs are quick there."""
    return math.sqrt(low * high) if known else min(low * 1.05, math.sqrt(low * high))


def _below(
    instance: Instance, threshold: float, objective: float, effort: Effort, at_least: tuple[int, ...] | None
) -> tuple[Solution, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """The program of stages below a threshold, without the arcs that no better plan contains; and those arcs."""
    below = np.flatnonzero(instance.arcs.seconds < threshold)
    arcs = instance.arcs.keep(instance.arcs.seconds < threshold)
    if math.isfinite(objective):
        cutoff = objective - instance.repeats * instance.floor_seconds
        useful = price_arcs(instance, arcs, cutoff, at_least).through < cutoff
        below, arcs = below[useful], arcs.keep(useful)
    solution = solve_path(
        instance, arcs, at_least=at_least, solver=effort.solver, clock=effort.clock, gap=PATH_GAP,
        time_limit_seconds=max(min(effort.left_seconds(), PATIENCE_SECONDS), 1.0),
    )
    return solution, below
