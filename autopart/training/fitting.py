"""Training a live model by a plan: all of it in this process, or one rank of it under torchrun."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autopart import running
from autopart.errors import UsageError
from autopart.modelsource import Source
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.schema.plan import Plan
from autopart.schema.training import Recipe, StepRecord, Training
from autopart.training import checkpoints, metrics
from autopart.training.datasource import open_data
from autopart.training.gradients import across_ranks, alone
from autopart.training.loop import Task, resumed_from, train_part
from autopart.training.part import Part, check_plan, part_of
from autopart.training.precision import autocast_dtype
from autopart.training.result import result_of
from autopart.training.trainer import ScaledLoss, Trainer

__all__ = ["fit"]


def fit(
    program: Program, plan: Plan, source: Source, data: Any, recipe: Recipe, *,
    optimizer: running.OptimizerChoice = None, checkpoint_directory: str | Path | None = None, resume: bool = False,
    metrics_file: str | Path | None = None, progress: Progress = silent,
    clock: Callable[[], float] = time.perf_counter,
) -> Training:  # fmt: skip
    """Trains the model of a plan; its own weights are trained, wherever it computes.

    Under torchrun each rank ends with those weights trained that it holds; checkpoints have all of them.

    Args:
        program: the model, traced in training at the size of the plan's micro-batch.
        plan: of this very model, for training.
        source: the model with inputs and targets of one whole batch, and the loss function.
        data: what ``--data`` takes, or what such a function returns.
        recipe: how to train.
        optimizer: a function of the trainable parameters, instead of the recipe's optimizer.
        checkpoint_directory: where checkpoints are written; None: nowhere.
        resume: go on from the latest of them, if there is one.
        metrics_file: one JSON object per step is added here, by the first rank.
        progress: told of every step.
        clock: seconds.

    Raises:
        UsageError: the plan is for inference, or the data do not fit the model.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    check_plan(plan)
    start_seconds = clock()
    opened = open_data(data) if isinstance(data, str) else data if callable(data) else lambda: data
    task = Task(
        plan=plan, recipe=recipe, source=source, opened=opened, data_name=data if isinstance(data, str) else "",
        checkpoints=Path(checkpoint_directory) if checkpoint_directory else None, resume=resume,
    )  # fmt: skip
    trainer, part = _trainer(program, plan, source, recipe, optimizer)
    first = resumed_from(task)
    begin = checkpoints.progress_of(first).step if first else 0
    if metrics_file and part.rank == 0:
        metrics.cut_after(Path(metrics_file), begin)
    records: list[StepRecord] = []

    def done(record: StepRecord) -> None:
        records.append(record)
        progress("training", record.step, recipe.steps)
        if metrics_file and part.rank == 0:
            metrics.append(Path(metrics_file), record)

    with torch.random.fork_rng():
        train_part(trainer, part, task, done=done)
    _give_back(program, part)
    return result_of(
        plan, recipe, records, resumed_from_step=begin, total_seconds=clock() - start_seconds,
        checkpoint=checkpoints.latest(task.checkpoints) if task.checkpoints else None,
        notes=_of_all(trainer.notes, part.num_ranks), versions=running.versions(),
    )  # fmt: skip


def _trainer(
    program: Program, plan: Plan, source: Source, recipe: Recipe, optimizer: running.OptimizerChoice
) -> tuple[Trainer, Part]:
    distributed = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    rank = int(os.environ["RANK"]) if distributed else None
    num_processes = len(running.process_devices(plan))
    if rank is not None and rank >= num_processes:
        raise UsageError(
            f"the plan has {num_processes} devices and this is rank {rank}; start torchrun --nproc-per-node "
            f"{num_processes}"
        )
    device = running.process_device(plan, rank or 0)
    loss = ScaledLoss(source.loss_fn, recipe.precision, device)
    program = dataclasses.replace(program, autocast=autocast_dtype(recipe.precision, device))
    pipeline = running.pipeline(program, plan, loss_fn=loss, compress_gradients=recipe.compress_gradients)
    parted = pipeline.parted if isinstance(pipeline, running.DistributedPipeline) else None
    part = part_of(program, plan, pipeline.weights(), device, rank, parted)
    exchange = alone if rank is None else across_ranks(device)
    stopwatch = pipeline.stopwatch if isinstance(pipeline, running.DistributedPipeline) else None
    trainer = Trainer(pipeline, part, recipe, loss, exchange=exchange, stopwatch=stopwatch, optimizer=optimizer)
    return trainer, part


def _of_all(notes: tuple[str, ...], num_ranks: int) -> tuple[str, ...]:
    """What every rank has to say, each thing once: of the loss only the last stage's knows."""
    if num_ranks == 1:
        return notes
    found: list[tuple[str, ...]] = [()] * num_ranks
    dist.all_gather_object(found, notes)
    return tuple(dict.fromkeys(note for each in found for note in each))


def _give_back(program: Program, part: Part) -> None:
    """Copies weights that were trained on another device, or in parts, into the user's model."""
    with torch.no_grad():
        for name, weight in part.weights.items():
            own = program.weight(name)
            if own is not weight:
                own.copy_(part.parted.join(name, weight))
