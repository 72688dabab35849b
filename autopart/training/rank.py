"""One rank of ``autopart train``, started by torch's launcher: ``python -m autopart.training.rank SPEC.json``."""

from __future__ import annotations

import dataclasses
import faulthandler
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from autopart import running
from autopart.modelsource import Source, load, with_batch
from autopart.program import Program
from autopart.schema import store
from autopart.schema.device import Device
from autopart.schema.plan import Plan
from autopart.schema.training import StepRecord
from autopart.tracing import trace
from autopart.training import metrics
from autopart.training.datasource import open_data
from autopart.training.gradients import across_ranks
from autopart.training.loop import Phase, Task, train_part
from autopart.training.part import Part, part_of
from autopart.training.precision import autocast_dtype
from autopart.training.records import TrainResult, TrainSpec, phase_path, pid_path, stack_path, stop_path
from autopart.training.trainer import ScaledLoss, Trainer

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Trains as the spec says and leaves a result or a failure in its directory; returns the exit code."""
    running.end_with_parent(signal.SIGKILL)
    spec = store.load(TrainSpec, arguments[0])
    rank = int(os.environ.get("RANK", "0"))
    with stack_path(spec.directory, rank).open("w") as stack:
        faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
        pid_path(spec.directory, rank).write_text(str(os.getpid()))
        try:
            result = _train(spec, store.load_plan(spec.plan_path), rank)
        except Exception as error:
            traceback.print_exc()
            failure = running.failure_of(error, rank, spec.devices[rank])
            store.save(failure, running.failure_path(spec.directory, rank))
            return 1
    store.save(result, running.result_path(spec.directory, rank))
    return 0


def _train(spec: TrainSpec, plan: Plan, rank: int) -> TrainResult:
    phase = _phases(spec, rank)
    phase("start")
    planned, device = plan.cluster.device(spec.devices[rank]), running.process_device(plan, rank)
    torch.set_num_threads(planned.num_threads or 1)
    torch.set_num_interop_threads(1)
    source = load(spec.source, dtype=plan.job.dtype, seed=spec.recipe.seed, directory=spec.source_directory)
    source = with_batch(source, plan.job.batch)
    program = _traced(source, plan, rank, autocast_dtype(spec.recipe.precision, device))
    running.join_group(device, spec.group_timeout_seconds)
    loss = ScaledLoss(source.loss_fn, spec.recipe.precision, device)
    stopwatch = running.stopwatch_for(device, planned.speed)
    pipeline = running.DistributedPipeline(
        program, plan, rank, loss_fn=loss, optimizer=None, stopwatch=stopwatch,
        compress_gradients=spec.recipe.compress_gradients,
    )
    part = part_of(program, plan, pipeline.weights(), device, rank, pipeline.parted)
    running.drop_weights(source.model, keep=pipeline.user_weights() | set(part.unused))
    trainer = Trainer(
        pipeline, part, spec.recipe, loss, exchange=across_ranks(device), stopwatch=stopwatch,
        guard=_cap(planned, part),
    )
    task = Task(
        plan=plan, recipe=spec.recipe, source=source, opened=open_data(spec.data, spec.source_directory),
        data_name=spec.data, checkpoints=Path(spec.checkpoints) if spec.checkpoints else None, resume=spec.resume,
    )  # fmt: skip
    stop = stop_path(spec.directory).exists if rank == 0 else bool
    stopped = train_part(trainer, part, task, done=_recorder(spec, rank), stop=stop, phase=phase)
    dist.destroy_process_group()
    return TrainResult(rank=rank, stopped=stopped, notes=trainer.notes, versions=running.versions())


def _cap(planned: Device, part: Part) -> running.MemoryCap | None:
    """The memory that the user gave a processor's device, kept while it computes."""
    cap_bytes = running.cap_of(planned, emulated=False)
    if cap_bytes is None:
        return None
    cap = running.MemoryCap(planned.name, cap_bytes)
    cap.watch(part.weights.values())
    return cap


def _traced(source: Source, plan: Plan, rank: int, autocast: torch.dtype | None) -> Program:
    piece = with_batch(source, running.samples_per_replica(plan, rank))
    program = trace(
        source.model, piece.args, piece.kwargs, training=True, name=source.name, opaque=plan.model.opaque
    )
    return dataclasses.replace(program, autocast=autocast)


def _recorder(spec: TrainSpec, rank: int) -> Callable[[StepRecord], None]:
    """Writes down each step, on the first rank."""

    def done(record: StepRecord) -> None:
        if rank == 0:
            metrics.append(Path(spec.metrics), record)

    return done


def _phases(spec: TrainSpec, rank: int) -> Callable[[Phase], None]:
    """Tells whoever watches what this rank does, on the first rank."""
    number = itertools.count()

    def phase(name: Phase) -> None:
        if rank == 0:
            phase_path(spec.directory).write_text(f"{name} {next(number)}")

    return phase


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
