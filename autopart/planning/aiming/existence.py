"""Whether any plan fits and keeps the limits of a job: what searches over other quantities than time ask."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autopart.planning.aiming.quantities import keeps_limits
from autopart.planning.searching.bottleneck import least_threshold
from autopart.planning.searching.bounds import prove
from autopart.planning.searching.chain import Path, best_path, is_exact
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.optimum import instances_of, is_large, options_of
from autopart.planning.searching.options import Option
from autopart.planning.searching.settling import keeping_rows
from autopart.planning.solving.effort import Effort, never
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = ["Existence", "any_plan", "first_fitting"]

COARSE = 0.05
"""how closely the least threshold is looked for where only a path is wanted"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Existence:
    """What was found."""

    options: tuple[Option, ...]
    """that fit and keep the limits"""
    none: bool
    """proven: no plan does"""
    solvers: frozenset[str] = frozenset()
    """that an integer program was given to"""


def any_plan(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, *, certify: bool = False
) -> Existence:
    """Some plans that fit and keep the limits, at most one per candidate and schedule, or that there are none.

    With ``certify`` an integer program has to say so too, where it is small enough.
    """
    none, solvers = True, set[str]()
    for candidate in candidates:
        for instance in instances_of(candidate, cluster, job):
            below = (job.max_step_seconds or math.inf) * (1 + 1e-9)
            whole = instance if math.isfinite(below) else replace(instance, repeats=0)
            path, settled, solver = _search(whole, below, effort, certify)
            solvers |= {solver} - {"none"}
            met = options_of(candidate, cluster, job, instance, path)
            met = [option for option in met if keeps_limits(option, cluster, job)]
            if met:
                return Existence(options=tuple(met), none=False, solvers=frozenset(solvers))
            none = none and settled and not path
    return Existence(options=(), none=none, solvers=frozenset(solvers))


def first_fitting(candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort) -> tuple[Option, ...]:
    """Plans that fit, of the first candidate that has any, by one sweep of the dynamic program over each problem.

    For searches that ended before they met a plan: a sweep over a problem that is not large takes no look at the clock,
    so that even a machine that is busy with other things has a plan.
    """
    for candidate in candidates:
        for instance in instances_of(candidate, cluster, job):
            patience = effort.is_over if is_large(instance) else never
            path = best_path(replace(instance, repeats=0), out_of_time=patience)
            if met := options_of(candidate, cluster, job, instance, path):
                return tuple(met)
    return ()


MOST_ARCS = 20_000
"""of an integer program that only confirms what is known"""
PATIENCE_SECONDS = 5.0
"""with one"""


def _search(instance: Instance, below: float, effort: Effort, certify: bool) -> tuple[Path, bool, str]:
    """A path with an objective below the limit, or whether it is certain that there is none; and the solver asked."""
    if is_large(replace(instance, repeats=instance.num_microbatches - 1)):
        longest = min(below / (instance.repeats + 1), float(instance.arcs.seconds.max(initial=0.0)))
        least = least_threshold(instance, below / (instance.repeats + 1), COARSE, out_of_time=effort.is_over)
        path = keeping_rows(instance, least.path)
        if path and not math.isfinite(below):
            return path, True, "none"
        if least.floor_seconds >= longest:
            return (), True, "none"
    path = best_path(instance, below=below, out_of_time=effort.is_over)
    misses_some = instance.arcs.are_late and math.isfinite(below)
    exact = is_exact(instance.counts, instance.widest) and not misses_some and not effort.is_over()
    if path or (exact and not (certify and len(instance.arcs) <= MOST_ARCS)):
        return path, True, "none"
    if certify:
        effort = replace(effort, deadline=min(effort.deadline, effort.clock() + PATIENCE_SECONDS))
    certificate = prove(instance, below * (1 + effort.gap), effort, at_least_one_program=True)
    return certificate.path, certificate.closed or exact, certificate.solver
