"""The process group that the ranks of a plan talk through, and whether they are of one plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.running.mesh import process_devices
from autopart.schema.plan import Plan

__all__ = ["BACKENDS", "check_same_plan", "check_size", "join_group"]

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
"""what tensors travel by, for each type of device"""


def join_group(device: torch.device, timeout_seconds: float) -> None:
    """Makes the default process group from torchrun's environment, for tensors on ``device``."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        BACKENDS[device.type],
        timeout=timedelta(seconds=timeout_seconds),
        device_id=device if device.type == "cuda" else None,
    )


def check_size(plan: Plan, num_processes: int) -> None:
    """Refuses another number of processes than the plan has devices.

    Raises:
        RunError: it is another.
    """
    devices = process_devices(plan)
    if num_processes != len(devices):
        raise RunError(
            f"the plan runs on {len(devices)} device{'s'[: len(devices) > 1]} ({', '.join(devices)}) and there are "
            f"{num_processes} processes; start it with torchrun --nproc-per-node {len(devices)}"
        )


def check_same_plan(plan: Plan) -> None:
    """Refuses processes with different plans, which would hang, or take one value for another; collective.

    Raises:
        RunError: another process has another plan.
    """
    found = [("", "")] * dist.get_world_size()
    dist.all_gather_object(found, (_digest(plan), _in_words(plan)))
    other = first_other(found)
    if other is not None:
        raise RunError(
            f"process {other} has another plan than process 0: {found[other][1]}, not {found[0][1]}; where each "
            f"process plans for itself, each measures for itself: plan once, save the plan, and load it in all"
        )


def first_other(found: Sequence[tuple[str, str]]) -> int | None:
    """The first process whose digest is not that of process 0."""
    return next((process for process, (digest, _) in enumerate(found) if digest != found[0][0]), None)


def _digest(plan: Plan) -> str:
    """Of all that the processes have to agree in: not of times."""
    stages = [(each.devices, each.layers, each.tensor_parallel, each.data_parallel) for each in plan.stages]
    codecs = [(each.tensor, each.from_stage, each.to_stage, each.codec) for each in plan.transfers]
    what = (plan.model.fingerprint, plan.job.mode, plan.job.batch, plan.schedule, stages, codecs)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def _in_words(plan: Plan) -> str:
    stages = ", ".join(f"{len(each.layers)} on {' and '.join(each.devices)}" for each in plan.stages)
    return f"layers {stages}, {plan.schedule.num_microbatches} micro-batches under {plan.schedule.name}"
