"""From a job's objective to the search for it, and to the words where its limits leave no plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from autopart.errors import InfeasibleError
from autopart.planning.aiming.cheapest import cheapest
from autopart.planning.aiming.existence import any_plan
from autopart.planning.aiming.quantities import QUANTITIES, amount_of, rent_of
from autopart.planning.aiming.roomiest import fewest, least_memory
from autopart.planning.searching.optimum import Optimum, find_optimum
from autopart.planning.searching.options import Option, rank
from autopart.planning.solving.effort import Effort
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Objective
from autopart.schema.plan import Least
from autopart.schema.problem import Candidate
from autopart.units import format_seconds

__all__ = ["SEARCHES", "beyond_limits", "least_of"]

Search = Callable[[tuple[Candidate, ...], Cluster, Job, Effort, Progress], Optimum]

SEARCHES: dict[Objective, Search] = {
    "throughput": find_optimum,
    "latency": find_optimum,
    "cost": cheapest,
    "memory": least_memory,
    "devices": fewest,
}


def least_of(option: Option, optimum: Optimum, cluster: Cluster, job: Job) -> Least | None:
    """What is proven of an option where something else than time is made least."""
    quantity = QUANTITIES.get(job.objective)
    if quantity is None or optimum.least_bound is None:
        return None
    value = amount_of(option, cluster, job, option.objective_seconds)
    return Least(quantity=quantity.name, value=value, bound=min(value, optimum.least_bound))


def beyond_limits(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> InfeasibleError | None:
    """The error to raise where plans fit in memory but none keeps the limits; None where it is not the limits."""
    free = replace(job, max_step_seconds=None, max_usd_per_hour=None)
    if free == job or not any_plan(candidates, cluster, free, effort).options:
        return None
    if job.max_usd_per_hour is not None:
        unhurried = replace(job, max_step_seconds=None)
        if not any_plan(candidates, cluster, unhurried, effort).options:
            rent = _least_rent(candidates, cluster, free, effort)
            return InfeasibleError(
                f"no plan that fits in memory costs {job.max_usd_per_hour:g} $/h or less: it takes devices of "
                f"{rent:.4g} $/h; give --max-price {_up(rent)}$/h, or cheaper devices"
            )
    timed = replace(job, max_step_seconds=None, objective="latency" if job.objective == "latency" else "throughput")
    found = find_optimum(candidates, cluster, timed, effort, silent)
    if not found.options:
        return InfeasibleError("no plan that keeps the limits was found in time; give a longer --time-limit")
    fastest = min(rank(option, timed)[0] for option in found.options)
    most = "" if job.max_usd_per_hour is None else f" for {job.max_usd_per_hour:g} $/h"
    return InfeasibleError(
        f"no plan takes {format_seconds(job.max_step_seconds or 0.0)} a step or less{most}: "
        f"the fastest that fits takes {format_seconds(fastest)}, none less than {format_seconds(found.bound_seconds)}; "
        f"give --max-step-time {_up(fastest * 1e3)}ms, or more or faster devices"
    )


def _up(value: float) -> str:
    """Rounded up to four digits, so that a limit of it is kept."""
    scale = 10 ** (3 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale * (1 - 1e-12)) / scale:.15g}"


def _least_rent(candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort) -> float:
    """Least US dollars an hour for which some plan fits, to 0.1 %."""
    low, high = 0.0, sum(device.rent_usd_per_hour or 0.0 for device in cluster.devices)
    while high - low > 1e-3 * high and not effort.is_over():
        middle = (low + high) / 2
        there = any_plan(candidates, cluster, replace(job, max_usd_per_hour=middle), effort)
        if there.options:
            high = min(rent_of(option, cluster) for option in there.options)
        else:
            low = middle
    return high
