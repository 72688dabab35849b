"""The whole training of one process: from a checkpoint or the beginning, step by step, to the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from autopart.errors import UsageError
from autopart.modelsource import Source, batch_of
from autopart.running import Batch
from autopart.schema.plan import Plan
from autopart.schema.training import Progress, Recipe, StepRecord
from autopart.training import checkpoints
from autopart.training.columns import layout_of
from autopart.training.datasource import reader_of
from autopart.training.part import Part
from autopart.training.trainer import Fed, Trainer

__all__ = ["Phase", "Task", "resumed_from", "train_part"]

Phase = Literal["start", "step", "checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all processes of a training know of it."""

    plan: Plan
    recipe: Recipe
    source: Source
    """with inputs and targets of one batch of the plan"""
    opened: Callable[[], Any]
    """gives the data"""
    data_name: str
    checkpoints: Path | None
    resume: bool


def train_part(
    trainer: Trainer, part: Part, task: Task, *, done: Callable[[StepRecord], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False, phase: Callable[[Phase], None] = lambda _: None,
) -> bool:  # fmt: skip
    """Trains; every rank has to call it.

    Args:
        trainer: of this process.
        part: what this process holds.
        task: the same on every rank.
        done: told of every step.
        stop: asked after every step whether the training is to stop, with a checkpoint, before its last one.
        phase: told what this process does next.

    Returns:
        Whether it was stopped.
    """
    recipe, batch = task.recipe, batch_of(task.source)
    start = resumed_from(task)
    if start is not None:
        _restore(trainer, part, start, task.plan.model.fingerprint)
    batches = _batches(part, task, trainer.samples, batch)
    while trainer.step_number < recipe.steps:
        phase("step")
        record, stopped = trainer.step(batches, batch, stop=stop())
        done(record)
        over = stopped or record.step == recipe.steps
        if task.checkpoints and (over or (recipe.checkpoint_every and record.step % recipe.checkpoint_every == 0)):
            phase("checkpoint")
            _save(trainer, part, task, task.checkpoints)
        if stopped:
            return True
    return False


def resumed_from(task: Task) -> Path | None:
    """The checkpoint that a training goes on from.

    Raises:
        UsageError: there is one and the training was not asked to resume.
    """
    found = checkpoints.latest(task.checkpoints) if task.checkpoints else None
    if found is not None and not task.resume:
        raise UsageError(
            f"{task.checkpoints} has a checkpoint already, {found.name}; add --resume to go on from it, or give "
            f"another directory"
        )
    return found


def _batches(part: Part, task: Task, start: int, batch: int) -> Iterator[Fed]:
    """What this process is given; nothing is read by one that needs neither inputs nor targets."""
    if not part.reads_inputs and not part.reads_targets:
        while True:
            yield Fed(batch=Batch(args=(), kwargs={}, target=None), digest=0)
    layout, recipe = layout_of(task.source), task.recipe
    wanted = part.wanted(layout.is_target)
    read = reader_of(task.opened, layout, wanted, shuffle=recipe.shuffle, seed=recipe.seed)
    for rows in read(start, batch):
        yield Fed(batch=layout.batch(rows.columns, part.device), digest=part.digest_weight * rows.digest)


def _save(trainer: Trainer, part: Part, task: Task, directory: Path) -> None:
    state, numbers = trainer.state()
    progress = trainer.progress(task.plan.model.fingerprint, task.data_name, numbers)
    checkpoints.save(
        directory, part.entries(state), progress, rank=part.rank, num_ranks=part.num_ranks, keep=task.recipe.keep
    )


def _restore(trainer: Trainer, part: Part, checkpoint: Path, fingerprint: str) -> None:
    progress = checkpoints.progress_of(checkpoint)
    _check_same_model(checkpoint, progress, fingerprint)
    rooms = {name: part.parted.room(name, part.weights[name].detach()) for name, keys in part.keys.items() if keys}
    weights = {f"model.{part.keys[name][0]}": room for name, room in rooms.items()}
    weights |= {f"model.{key}": weight.detach() for key, weight in part.unused.items()}
    state = {
        name: checkpoints.empty_state(checkpoint, name, parameter.device) for name, parameter in part.trainable.items()
    }
    fields = {
        f"optimizer.state.{name}.{field}": value for name, each in state.items() for field, value in each.items()
    }
    with torch.no_grad():
        checkpoints.load_into(checkpoint, weights | fields)
        for name in part.parted.shards.keys() & rooms.keys():
            part.weights[name].copy_(part.parted.own(name, rooms[name]))
    trainer.restore(progress, {
        name: {field: part.parted.own(name, value) if value.dim() else value for field, value in each.items()}
        for name, each in state.items()
    })  # fmt: skip


def _check_same_model(checkpoint: Path, progress: Progress, fingerprint: str) -> None:
    if progress.fingerprint != fingerprint:
        raise UsageError(
            f"{checkpoint} is of another model: its fingerprint is {progress.fingerprint}, this model's is "
            f"{fingerprint}; give another directory"
        )
