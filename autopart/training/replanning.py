"""What to change after a failure so that a training can go on: other devices, other caps, other speeds, or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from autopart import modelsource, planning, verbs
from autopart.errors import InfeasibleError, RankError
from autopart.running import process_devices
from autopart.schema.device import Cluster, Device
from autopart.schema.plan import Plan
from autopart.training.stragglers import Straggler
from autopart.units import format_bytes

__all__ = ["Replan", "after_failure", "for_straggler", "replanner"]

Replan = Callable[[Plan, Cluster], Plan]
"""a plan of the same model and job for other devices"""

LESS_MEMORY = 0.8
"""of what a plan needed there, after a device ran out of memory"""


def after_failure(plan: Plan, error: RankError, replan: Replan, *, may_return: bool = False) -> tuple[Plan, str] | None:
    """The plan to go on with and what was changed; None if nothing on our side would help.

    Args:
        plan: that failed.
        error: how.
        replan: makes plans.
        may_return: a device whose rank died is taken to be still there.

    Raises:
        InfeasibleError: what is left cannot hold the model.
    """
    if error.fate not in _CHANGES:
        return None
    if may_return and error.fate in _GONE:
        return plan, f"{error.device} is tried again"
    return _CHANGES[error.fate](plan, error.device, replan)


def for_straggler(plan: Plan, straggler: Straggler, replan: Replan) -> Plan:
    """The plan for devices of which one is slower than planned; its speed stays what it was in the cluster."""
    there = {device.name: device for device in plan.cluster.devices}
    slow = there[straggler.device]
    slower = dataclasses.replace(slow, speed=slow.speed * straggler.speed)
    found = replan(plan, _with(plan.cluster, slower))
    return dataclasses.replace(found, cluster=_with(found.cluster, slow))


def replanner(source_text: str, directory: str | Path, prefetch: int | None = None) -> Replan:
    """Makes plans by measuring and planning as ``autopart plan`` does, with the number of micro-batches as it was.

    So a micro-batch stays what it was, for batch normalisation too, unless no plan with them fits.  Receives are posted
    ``prefetch`` computations early; None: where that pays, as in the plan that the training began with.
    """

    def replan(plan: Plan, cluster: Cluster) -> Plan:
        return planning.hidden(planned(plan, cluster), prefetch)

    def planned(plan: Plan, cluster: Cluster) -> Plan:
        names = {device.name for device in cluster.devices}
        job = plan.job
        words = {
            field.name: getattr(job, field.name) for field in dataclasses.fields(job)
        } | {
            "stages": None, "microbatches": plan.schedule.num_microbatches,
            "pins": tuple(pin for pin in job.pins if pin[1] in names),
            "forbidden": tuple(pin for pin in job.forbidden if pin[1] in names),
        }  # fmt: skip
        source = modelsource.load(source_text, dtype=job.dtype, directory=directory)
        try:
            return verbs.plan_source(source, devices=cluster, verify=False, **words)
        except InfeasibleError:
            return verbs.plan_source(source, devices=cluster, verify=False, **(words | {"microbatches": None}))

    return replan


def _without(plan: Plan, device: str, replan: Replan) -> tuple[Plan, str]:
    left = tuple(each for each in plan.cluster.devices if each.name != device and each.torch_device is not None)
    if not left:
        return plan, f"{device} is the only device and is tried again"
    found = replan(plan, dataclasses.replace(plan.cluster, devices=left))
    return found, f"{device} is left out; planned for {', '.join(process_devices(found))}"


def _with_less_memory(plan: Plan, device: str, replan: Replan) -> tuple[Plan, str]:
    needed_bytes = sum(stage.peak_bytes for stage in plan.stages if device in stage.devices)
    short = next(each for each in plan.cluster.devices if each.name == device)
    least_bytes = max(1, int(min(needed_bytes, short.memory_bytes) * LESS_MEMORY))
    found = replan(plan, _with(plan.cluster, dataclasses.replace(short, memory_bytes=least_bytes)))
    return found, f"planned with {format_bytes(least_bytes)} for {device}, on {', '.join(process_devices(found))}"


def _unchanged(plan: Plan, device: str, replan: Replan) -> tuple[Plan, str]:
    return plan, "the same plan is tried again"


_GONE = ("killed", "ended", "hung", "lost")
_CHANGES: dict[str, Callable[[Plan, str, Replan], tuple[Plan, str]]] = {
    **dict.fromkeys(_GONE, _without), "memory": _with_less_memory, "link": _unchanged,
}  # fmt: skip


def _with(cluster: Cluster, device: Device) -> Cluster:
    """The cluster with this device in the place of the one of its name."""
    devices = tuple(device if each.name == device.name else each for each in cluster.devices)
    return dataclasses.replace(cluster, devices=devices)
