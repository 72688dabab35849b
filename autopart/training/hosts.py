"""One rank of a training that torchrun started, on this machine or on one of several."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from autopart import running
from autopart.errors import UsageError
from autopart.modelsource import load, with_batch
from autopart.progress import Progress
from autopart.schema.plan import Plan
from autopart.schema.training import Training
from autopart.tracing import trace
from autopart.training.fitting import fit

if TYPE_CHECKING:
    from autopart.training.session import Order

__all__ = ["is_rank", "train_as_rank"]


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def train_as_rank(plan: Plan, order: Order, progress: Progress) -> Training:
    """This process's part of a training; its metrics are told and written by the first rank.

    Args:
        plan: with as many devices as torchrun started processes.
        order: what to do; its checkpoint directory has to be the same one for all ranks.
        progress: told of every step.

    Raises:
        UsageError: the plan has another number of devices.
    """
    devices, rank = running.process_devices(plan), int(os.environ["RANK"])
    if int(os.environ["WORLD_SIZE"]) != len(devices):
        raise UsageError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes and the plan has {len(devices)} devices; start "
            f"one for each (--nnodes times --nproc-per-node)"
        )
    torch.set_num_threads(plan.cluster.device(devices[rank]).num_threads or 1)
    source = load(order.source, dtype=plan.job.dtype, seed=order.recipe.seed, directory=order.directory)
    source = with_batch(source, plan.job.batch)
    piece = with_batch(source, running.samples_per_replica(plan))
    program = trace(
        source.model, piece.args, piece.kwargs, training=True, name=source.name, opaque=plan.model.opaque
    )
    running.join_group(running.process_device(plan, rank), order.group_timeout_seconds)
    found = fit(
        program, plan, source, order.data, order.recipe, checkpoint_directory=order.checkpoint_directory,
        resume=order.resume, metrics_file=order.metrics_file, progress=progress,
    )
    dist.destroy_process_group()
    return found
