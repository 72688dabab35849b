"""What can be made least of a plan, and the limits that it has to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from autopart.errors import UsageError
from autopart.planning.searching.options import Option, rank
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Objective

__all__ = ["QUANTITIES", "Quantity", "amount_of", "choose", "keeps_limits", "rent_of", "with_rents"]

TOLERANCE = 1e-9
"""relative: the same sums in another order"""


def rent_of(option: Option, cluster: Cluster) -> float:
    """US dollars per hour of the devices in use; devices without a rent count as free."""
    return sum(cluster.device(name).rent_usd_per_hour or 0.0 for name in option.layout.used)


def _usd_per_step(option: Option, cluster: Cluster, seconds: float) -> float:
    return rent_of(option, cluster) * seconds / 3600


def _memory_share(option: Option, cluster: Cluster, seconds: float) -> float:
    devices = (cluster.device(name) for name in option.layout.devices)
    return max(cost.memory.total / device.memory_bytes for cost, device in zip(option.costs, devices, strict=True))


def _devices(option: Option, cluster: Cluster, seconds: float) -> float:
    return float(len(option.layout.used))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """Something that is made least instead of time."""

    name: Literal["usd_per_step", "memory_share", "devices"]
    of: Callable[[Option, Cluster, float], float]
    """from an option, its cluster and the seconds that a step of it is taken to last"""


QUANTITIES: dict[Objective, Quantity] = {
    "cost": Quantity(name="usd_per_step", of=_usd_per_step),
    "memory": Quantity(name="memory_share", of=_memory_share),
    "devices": Quantity(name="devices", of=_devices),
}
"""of every objective that is not time"""


def amount_of(option: Option, cluster: Cluster, job: Job, seconds: float) -> float:
    """How much of what the job wants least an option has, if a step of it takes so long."""
    quantity = QUANTITIES.get(job.objective)
    return seconds if quantity is None else quantity.of(option, cluster, seconds)


def keeps_limits(option: Option, cluster: Cluster, job: Job) -> bool:
    """Whether an option is as fast, by simulation, and as cheap an hour as the job says."""
    most_seconds, most_rent = job.max_step_seconds, job.max_usd_per_hour
    fast = most_seconds is None or rank(option, job)[0] <= most_seconds * (1 + TOLERANCE)
    return fast and (most_rent is None or rent_of(option, cluster) <= most_rent * (1 + TOLERANCE))


def choose(
    pool: Iterable[Option], cluster: Cluster, job: Job, bound: float | None, bound_seconds: float = 0.0
) -> Option:
    """The option with least of what the job wants; of those within half the job's gap of the bound the fastest.

    For throughput the fastest by simulation, unless what is proven does not reach it and reaches another one that is
    slower by no more than half the job's gap.
    """
    options = list(pool)
    if job.objective == "throughput":
        fastest = min(options, key=lambda option: rank(option, job))
        near = [o for o in options if o.step_seconds <= fastest.step_seconds * (1 + job.gap / 2)]
        proven = [o for o in near if o.objective_seconds <= bound_seconds * (1 + job.gap)]
        return fastest if fastest in proven or not proven else min(proven, key=lambda option: rank(option, job))
    amounts = [amount_of(option, cluster, job, rank(option, job)[0]) for option in options]
    enough = max(min(amounts), (bound or 0.0) * (1 + job.gap / 2) if job.objective == "memory" else 0.0)
    near = [option for option, amount in zip(options, amounts, strict=True) if amount <= enough * (1 + TOLERANCE)]
    return min(near, key=lambda option: rank(option, job))


def with_rents(cluster: Cluster, job: Job) -> Cluster:
    """The cluster with the rents that the job gives.

    Raises:
        UsageError: a rent is of no device, or one is needed and not known.
    """
    rents, devices = dict(job.rents), cluster.devices
    known = {word for device in devices for word in (device.name, device.kind)}
    for name in rents.keys() - known:
        raise UsageError(f"a rent is given for {name}, which is no device here; they are {', '.join(sorted(known))}")
    priced = tuple(
        replace(each, rent_usd_per_hour=rents.get(each.name, rents.get(each.kind, each.rent_usd_per_hour)))
        for each in devices
    )
    unpriced = [device.name for device in priced if device.rent_usd_per_hour is None]
    if unpriced and (job.objective == "cost" or job.max_usd_per_hour is not None):
        some = ", ".join(unpriced[:3]) + (f" and {len(unpriced) - 3} more" if len(unpriced) > 3 else "")
        raise UsageError(f"no rent is known of {some}; give it, for example --rent {unpriced[0]}=0.50$/h")
    if job.objective == "cost" and not math.fsum(device.rent_usd_per_hour or 0.0 for device in priced):
        raise UsageError("all devices are free, so no plan is cheaper than another; leave --objective cost out")
    return replace(cluster, devices=priced) if priced != devices else cluster
