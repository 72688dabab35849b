"""The pipeline of a plan, in this process or as one rank of several."""

from __future__ import annotations

import os

import torch.distributed as dist

from autopart.program import Program
from autopart.running.dataparallel import GradientCodec
from autopart.running.distributed import DistributedPipeline
from autopart.running.group import check_size, join_group
from autopart.running.inprocess.local import LocalPipeline
from autopart.running.loss import LossFunction
from autopart.running.mesh import process_device
from autopart.running.optimizers import OptimizerChoice
from autopart.schema.codec import CodecName
from autopart.schema.plan import Plan

__all__ = ["pipeline"]


def pipeline(
    program: Program,
    plan: Plan,
    *,
    loss_fn: LossFunction | None = None,
    optimizer: OptimizerChoice = None,
    compress: CodecName | None = None,
    compress_gradients: GradientCodec = "none",
    prefetch: int = 0,
    group_timeout_seconds: float = 600.0,
) -> LocalPipeline | DistributedPipeline:
    """What steps a plan: one rank of it under torchrun, else all of it in this process.

    Under torchrun (``RANK`` and ``WORLD_SIZE`` are set) the default process group is made if there is none.

    Args:
        program: the model, traced at the size of the plan's micro-batch.
        plan: of this very model.
        loss_fn: called with the model's output and the targets.
        optimizer: a name of the job, or a function of the trainable parameters; without one gradients accumulate.
        compress: a codec for what crosses from device to device, instead of what the plan says.
        compress_gradients: what the gradients of data-parallel replicas travel as: fp16, bf16 (NCCL only) or none.
        prefetch: how many computations before it is needed a rank posts a receive (gloo only).
        group_timeout_seconds: after which torch gives up waiting for a rank that hangs.

    Raises:
        RunError: the plan is not of this model, or cannot be run here.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return LocalPipeline(program, plan, loss_fn=loss_fn, optimizer=optimizer, compress=compress)
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        check_size(plan, int(os.environ["WORLD_SIZE"]))
        join_group(process_device(plan, rank), group_timeout_seconds)
    return DistributedPipeline(
        program, plan, rank, loss_fn=loss_fn, optimizer=optimizer, compress=compress,
        compress_gradients=compress_gradients, prefetch=prefetch,
    )  # fmt: skip
