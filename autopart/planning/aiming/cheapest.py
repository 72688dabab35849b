"""Objective ``cost``: least rent for one step, that is, rent of the devices in use times the time of a step.

A step of a plan whose devices cost P an hour together costs P T.  Let T(B) be the least time of plans with P <= B: the
threshold path programs with row C9.  Given an incumbent of cost z, target = z / (1 + gap): plans with P in [B', B] cost
at least B' T(B), so with

    B' = target / T(B)

they cost no less than the target, and only plans with P < B' are left: the next budget, until no plan keeps it.  Before
that, program W bounds the cost from below (every stage a occupies its r_a devices for M t_a at least):

    W    minimise  M sum of r_a price_a t_a x_a    over the rows of the path program
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from autopart.planning.aiming.quantities import amount_of, keeps_limits
from autopart.planning.searching.bounds import prove
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.optimum import Optimum, find_optimum, instances_of, is_large, options_of
from autopart.planning.searching.options import Option
from autopart.planning.searching.prices import price_arcs
from autopart.planning.searching.updates import without_updates
from autopart.planning.solving.effort import Effort
from autopart.progress import Progress
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = ["cheapest"]

BELOW = 1 - 1e-6
"""a budget this much lower leaves out what costs as much"""
SECONDS_PER_HOUR = 3600


@dataclass(slots=True)
class _Search:
    """Where the search stands."""

    candidates: tuple[Candidate, ...]
    cluster: Cluster
    job: Job
    effort: Effort
    options: list[Option] = field(default_factory=list)
    best: float = math.inf
    """of the plans met that keep the limits: US dollars a step by the formula"""
    bound: float = math.inf
    """of the plans that are accounted for, but may cost less than the target"""
    closed: bool = True

    @property
    def target(self) -> float:
        """What a plan must beat to matter."""
        return self.best / (1 + self.effort.gap)

    def meet(self, options: Iterable[Option]) -> bool:
        """Take plans; whether any keeps the limits."""
        kept = [option for option in options if keeps_limits(option, self.cluster, self.job)]
        costs = (amount_of(option, self.cluster, self.job, option.objective_seconds) for option in kept)
        self.best = min((self.best, *costs))
        self.options += kept
        return bool(kept)


def cheapest(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, progress: Progress
) -> Optimum:
    """The plans met on the way to the cheapest, and a bound on the cost of a step of any."""
    rents = [device.rent_usd_per_hour or 0.0 for device in cluster.devices]
    search = _Search(candidates, cluster, job, effort)
    found = find_optimum(candidates, cluster, replace(job, objective="throughput"), effort, progress)
    if not search.meet(found.options):
        return found
    floor, budget, solvers, fastest = _least_work(search), sum(rents), found.solver.split("+"), found
    while search.target > floor and budget >= min(rents) and fastest.bound_seconds < _most_seconds(search):
        lower = search.target * SECONDS_PER_HOUR / max(fastest.bound_seconds, 1e-300)
        if lower > budget * (1 + 1e-9) or not search.closed or effort.is_over():
            search.closed = False
            search.bound = min(rents) * fastest.bound_seconds / SECONDS_PER_HOUR
            break
        budget = lower * BELOW
        fastest = _within(search, budget, progress)
        search.closed = search.meet(fastest.options) or fastest.bound_seconds >= _most_seconds(search)
        solvers += fastest.solver.split("+")
    return replace(
        found, options=tuple(search.options), closed=search.closed,
        solver="+".join(sorted(set(solvers) - {"none"})) or "none",
        bound="budgets from the highest down, each with path programs" + ("" if search.closed else ", some open"),
        least_bound=max(floor, min(search.bound, search.target * BELOW)),
    )


def _most_seconds(search: _Search) -> float:
    """A step that takes longer costs more than the target on any device, or is too long for the job."""
    lowest = min(device.rent_usd_per_hour or 0.0 for device in search.cluster.devices)
    by_cost = search.target * SECONDS_PER_HOUR / lowest if lowest else math.inf
    return min(by_cost, search.job.max_step_seconds or math.inf)


def _within(search: _Search, budget: float, progress: Progress) -> Optimum:
    """The fastest plans of devices within a budget, those that may be cheaper than the target."""
    job = replace(
        search.job, objective="throughput", max_usd_per_hour=min(budget, search.job.max_usd_per_hour or math.inf),
        max_step_seconds=limit if math.isfinite(limit := _most_seconds(search)) else None,
    )
    return find_optimum(search.candidates, search.cluster, job, search.effort, progress)


def _least_work(search: _Search) -> float:
    """Program W: a lower bound on the cost of a step of any plan, and the path that attains it is met."""
    bounds = []
    for candidate in search.candidates:
        for instance in instances_of(candidate, search.cluster, search.job):
            work = _work(instance, search.job)
            if is_large(instance):
                bounds.append(price_arcs(work, work.arcs, search.target, None, out_of_time=search.effort.is_over).bound)
                continue
            certificate = prove(work, search.best, search.effort, at_least_one_program=True)
            bounds.append(certificate.bound_seconds)  # dollars: the weights are
            if certificate.path:
                indices = np.flatnonzero(_fast_enough(instance, search.job))
                path = tuple(int(indices[arc]) for arc in certificate.path)
                search.meet(options_of(candidate, search.cluster, search.job, instance, path))
    return min(bounds)


def _fast_enough(instance: Instance, job: Job) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    most = (job.max_step_seconds or math.inf) * (1 + 1e-9)
    return np.asarray(instance.arcs.seconds * (instance.repeats + 1) <= most)


def _work(instance: Instance, job: Job) -> Instance:
    """The instance with what every stage costs at least as its weight, in US dollars."""
    arcs = instance.arcs.keep(_fast_enough(instance, job))
    rents = np.asarray([group.rent_usd_per_hour for group in instance.groups])
    per_second = rents[arcs.group] * arcs.width / SECONDS_PER_HOUR
    weight = (instance.repeats + 1) * per_second * arcs.seconds
    return replace(instance, arcs=without_updates(replace(arcs, weight=weight)), repeats=0)
