"""Objectives ``memory`` and ``devices``: bisection, each step a path program that need only be feasible.

``memory``: the least largest share of its cap that a device needs.  With all caps scaled by s a plan fits (C4, C6 and
the arcs left out) if and only if no device needs more than the share s.  ``devices``: the fewest devices.  With a rent
of 1 for each, row C9 counts them.  Of plans that have as little the fastest is taken: one more search at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from autopart.planning.aiming.existence import Existence, any_plan
from autopart.planning.aiming.quantities import QUANTITIES, keeps_limits
from autopart.planning.searching.optimum import Optimum, find_optimum
from autopart.planning.searching.options import Option, evaluate
from autopart.planning.solving.effort import Effort
from autopart.progress import Progress
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = ["fewest", "least_memory"]

SHARE_OF_GAP = 0.5
"""of the job's gap, to which the least share is looked for: fewer steps, each of them certain"""

Problem = tuple[Cluster, Job]


def least_memory(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, progress: Progress
) -> Optimum:
    """The fastest plans with the least largest share of a device's memory, and the bound on that share."""
    smallest = 0.5 / max(device.memory_bytes for device in cluster.devices)

    def middle(low: float, high: float) -> float:
        low = max(low, smallest)
        return math.sqrt(low * high) if high > low * (1 + max(job.gap, 1e-6) * SHARE_OF_GAP) else math.nan

    def problem(share: float) -> Problem:
        return _scaled(cluster, share), job

    return _bisect(candidates, cluster, job, effort, progress, problem, middle)


def fewest(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, progress: Progress
) -> Optimum:
    """The fastest plans on the fewest devices, and the bound on their number."""
    counted = replace(cluster, devices=tuple(replace(each, rent_usd_per_hour=1.0) for each in cluster.devices))

    def middle(low: float, high: float) -> float:
        return float((int(low) + int(high)) // 2) if high > low + 1 else math.nan

    def problem(number: float) -> Problem:
        return counted, replace(job, objective="throughput", max_usd_per_hour=number)

    found = _bisect(candidates, cluster, job, effort, progress, problem, middle)
    return found if found.least_bound is None else replace(found, least_bound=found.least_bound + 1)


def _bisect(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, progress: Progress,
    problem: Callable[[float], Problem], middle: Callable[[float, float], float],
) -> Optimum:
    """Plans with the least amount for which the problem has any, and the greatest amount proven too little."""
    amount = QUANTITIES[job.objective].of
    found = any_plan(candidates, cluster, job, effort)
    if not found.options:
        return find_optimum(candidates, cluster, replace(job, objective="throughput"), effort, progress)
    options = list(found.options)
    high = min(amount(option, cluster, 0.0) for option in options)
    low, proven, solvers = 0.0, 0.0, set[str]()
    while not math.isnan(between := middle(low, high)) and not effort.is_over():
        there = _any(candidates, problem(between), effort, solvers)
        if there.options:
            options += (_on(cluster, job, option) for option in there.options)
            high = min(between, *(amount(option, cluster, 0.0) for option in options))
        else:
            low, proven = between, between if there.none else proven
    if proven:
        _any(candidates, problem(proven), effort, solvers, certify=True)
    where, within = problem(high)
    last = find_optimum(candidates, where, replace(within, objective="throughput"), effort, progress)
    options += (_on(cluster, job, option) for option in last.options)
    options = [option for option in options if keeps_limits(option, cluster, job)]
    return replace(
        last, options=tuple(options), closed=proven == low and math.isnan(between), least_bound=proven,
        bound="bisection, each step a path program that has to be feasible",
        solver="+".join(sorted((solvers | set(last.solver.split("+"))) - {"none"})) or "none",
    )


def _any(
    candidates: tuple[Candidate, ...], problem: Problem, effort: Effort, solvers: set[str], *, certify: bool = False
) -> Existence:
    where, job = problem
    there = any_plan(candidates, where, replace(job, objective="throughput"), effort, certify=certify)
    solvers |= there.solvers
    return there


def _on(cluster: Cluster, job: Job, option: Option) -> Option:
    """The option with the caps and rents that there are."""
    return evaluate(option.candidate, cluster, job, option.layout)


def _scaled(cluster: Cluster, share: float) -> Cluster:
    """The devices with so large a share of their memory, to the byte below."""
    devices = tuple(
        replace(each, memory_bytes=max(1, math.floor(each.memory_bytes * share * (1 + 1e-12))))
        for each in cluster.devices
    )
    return replace(cluster, devices=devices)
