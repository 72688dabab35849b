"""One rank of ``autopart run``, started by torch's launcher: ``python -m autopart.cli.rank SPEC.json``."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from autopart import running
from autopart.modelsource import Source, load, with_batch
from autopart.pace import Pacer, clock_for
from autopart.running import Batch, RankResult, RankSpec
from autopart.schema import store
from autopart.schema.device import Device
from autopart.schema.plan import Plan
from autopart.tracing import trace

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Does what the spec says and leaves a result or a failure in its directory; returns the exit code."""
    running.end_with_parent(signal.SIGKILL)
    spec = store.load(RankSpec, arguments[0])
    rank = int(os.environ.get("RANK", "0"))
    try:
        result = WORK[spec.mode](spec, store.load_plan(spec.plan_path), rank)
    except Exception as error:
        traceback.print_exc()
        store.save(running.failure_of(error, rank, spec.devices[rank]), running.failure_path(spec.directory, rank))
        return 1
    store.save(result, running.result_path(spec.directory, rank))
    return 0


def _run_stage(spec: RankSpec, plan: Plan, rank: int) -> RankResult:
    """One stage of the plan."""
    planned, device = plan.cluster.device(spec.devices[rank]), running.process_device(plan, rank)
    torch.set_num_threads(planned.num_threads or 1)
    source = _load(spec, plan)
    piece = with_batch(source, running.samples_per_replica(plan, rank))
    training = plan.job.mode == "train"
    program = trace(
        source.model, piece.args, piece.kwargs, training=training, name=source.name, opaque=plan.model.opaque
    )
    running.join_group(device, spec.group_timeout_seconds)
    pace = running.timetable(plan, planned.name) if spec.throttle == "plan" else None
    pipeline = running.DistributedPipeline(
        program, plan, rank, loss_fn=source.loss_fn, optimizer=plan.job.optimizer,
        stopwatch=_stopwatch(spec, planned, device, pace), joins_outputs=False, compress=spec.compress,
        compress_gradients=spec.compress_gradients,
        limits=Path(spec.directory) / "links" if spec.emulated else None,
    )
    running.drop_weights(source.model, keep=pipeline.user_weights())
    pacer = Pacer(device, clock_for(planned.num_threads))  # before the meter: its matrices are not the stage's
    with _throttled(spec, planned):
        meter = running.meter_for(
            device, pipeline.weights().values(), warmup=spec.warmup, cap=_cap(spec, planned)
        )
        result = running.run_steps(
            pipeline, _batch(source, device), rank=rank, device=planned.name, steps=spec.steps, warmup=spec.warmup,
            training=training, meter=meter, barrier=dist.barrier, done=_counter(spec, rank),
            turn=_turn(spec, rank), pacer=pacer, traffic=pipeline.traffic,
        )
    result = dataclasses.replace(
        result, compress=spec.compress, num_paced=pace.num_parts if pace else 0, num_late=pace.num_late if pace else 0
    )
    if spec.layers:
        dist.barrier()  # all ranks compute at once, as in the steps
        result = running.with_layer_seconds(
            result, program, plan, weight=pipeline.weights().__getitem__, device=device,
            clock=clock_for(planned.num_threads),
        )
    dist.destroy_process_group()
    return result


def _run_whole(spec: RankSpec, plan: Plan, rank: int) -> RankResult:
    """The unsplit model as its author wrote it, the whole batch at once."""
    planned = plan.cluster.device(spec.devices[rank])
    device = torch.device(planned.torch_device or "cpu")
    torch.set_num_threads(planned.num_threads or 1)
    source = _load(spec, plan)
    training = plan.job.mode == "train"
    model = source.model.train(training).to(device)
    unsplit = running.UnsplitModel(
        model, plan.job.mode, loss_fn=source.loss_fn, optimizer=plan.job.optimizer,
        stopwatch=_stopwatch(spec, planned, device),
    )
    pacer = Pacer(device, clock_for(planned.num_threads))
    with _throttled(spec, planned):
        meter = running.meter_for(
            device, [*model.parameters(), *model.buffers()], warmup=spec.warmup, cap=_cap(spec, planned)
        )
        return running.run_steps(
            unsplit, _batch(source, device), rank=rank, device=planned.name, steps=spec.steps, warmup=spec.warmup,
            training=training, meter=meter, barrier=lambda: None, done=_counter(spec, rank),
            turn=_turn(spec, rank), pacer=pacer,
        )


WORK: dict[str, Callable[[RankSpec, Plan, int], RankResult]] = {"pipeline": _run_stage, "single": _run_whole}


def _stopwatch(
    spec: RankSpec, planned: Device, device: torch.device, pace: running.TimetablePace | None = None
) -> running.Stopwatch:
    """What times the parts of a step, and makes an emulated device slow unless the kernel does."""
    if pace is not None:
        return running.HostStopwatch(pace)
    return running.stopwatch_for(device, 1.0 if spec.throttle == "quota" else planned.speed)


def _cap(spec: RankSpec, planned: Device) -> running.MemoryCap | None:
    cap_bytes = running.cap_of(planned, emulated=spec.emulated)
    return None if cap_bytes is None else running.MemoryCap(planned.name, cap_bytes)


def _throttled(spec: RankSpec, planned: Device) -> AbstractContextManager[None]:
    """Within, the kernel makes an emulated device slow, if that was asked for."""
    return running.cpu_quota(planned.speed) if spec.throttle == "quota" else nullcontext()


def _load(spec: RankSpec, plan: Plan) -> Source:
    torch.set_num_interop_threads(1)
    source = load(spec.source, dtype=plan.job.dtype, seed=spec.seed, directory=spec.source_directory)
    torch.manual_seed(spec.seed)  # from here on every rank draws the same numbers, whatever the model's code drew
    return with_batch(source, plan.job.batch)


def _batch(source: Source, device: torch.device) -> Batch:
    def placed(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf

    args, kwargs, target = pytree.tree_map(placed, (source.args, source.kwargs, source.targets))
    return Batch(args=args, kwargs=kwargs, target=target)


def _counter(spec: RankSpec, rank: int) -> Callable[[], None]:
    """Tells whoever waits that a step is done."""

    def done() -> None:
        if rank == 0:
            with running.progress_path(spec.directory).open("ab") as file:
                file.write(b".")

    return done


def _turn(spec: RankSpec, rank: int) -> Callable[[int], None]:
    """Waits for the run that this one alternates with; the other ranks wait for rank 0 at the barrier."""
    if spec.alternates_with is None or rank:
        return lambda _: None
    return running.turn_after(spec.alternates_with, leads=spec.mode == "pipeline")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
