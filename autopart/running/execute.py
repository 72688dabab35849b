"""Warm-up and timed steps of one rank."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from autopart.compression import Traffic
from autopart.pace import Pacer
from autopart.running.launching.records import RankResult, StageSeconds
from autopart.running.memory import MemoryMeter
from autopart.running.stopwatch import Lap, Stopwatch

__all__ = ["Batch", "Steppable", "drop_weights", "run_steps", "versions"]


class Steppable(Protocol):
    """What can be stepped and timed: a pipeline, or the unsplit model."""

    stopwatch: Stopwatch

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        ...

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """One step over a whole batch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What every step is given."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any


def run_steps(
    steppable: Steppable,
    batch: Batch,
    *,
    rank: int,
    device: str,
    steps: int,
    warmup: int,
    training: bool,
    meter: MemoryMeter,
    barrier: Callable[[], None],
    done: Callable[[], None],
    turn: Callable[[int], None] = lambda _: None,
    pacer: Pacer,
    traffic: Traffic | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RankResult:
    """What a rank measures over ``steps`` steps after ``warmup`` that do not count.

    Args:
        steppable: what is stepped.
        batch: what every step is given.
        rank: of this process.
        device: name of its device in the plan.
        steps: timed steps.
        warmup: steps before them.
        training: a step returns a loss, on the rank that has it.
        meter: watches memory from before the first step.
        barrier: brings the ranks together before each step.
        done: called after each step.
        turn: called with the number of each step, warm-up included, before it; returns when it may be taken.
        pacer: takes the machine's pace beside every timed step.
        traffic: counts what goes to other ranks, if anything does.
        clock: seconds.
    """
    seconds, laps, losses, traffic = [], [], [], traffic or Traffic()
    for index in range(warmup + steps):
        if index == warmup:
            traffic.clear()
        turn(index)
        if index >= warmup:
            barrier()  # all ranks compute at once, as in the step
            pacer.sample()
        barrier()
        start_seconds = clock()
        steppable.stopwatch.start()
        result = steppable.step(*batch.args, target=batch.target, **batch.kwargs)
        lap = steppable.stopwatch.take()  # waits for the device
        if index >= warmup:
            seconds.append(clock() - start_seconds)
            laps.append(lap)
            if training and result is not None:
                losses.append(float(result))
        del result
        meter.observe()
        done()
    result = _result(rank, device, seconds, laps, losses, pacer, meter, steppable.notes)
    return dataclasses.replace(
        result, sent_bytes=traffic.sent_bytes // steps, plain_bytes=traffic.plain_bytes // steps
    )


def drop_weights(model: nn.Module, keep: Set[str]) -> None:
    """Frees all parameters and buffers of ``model`` but those named, in place: the model is not usable any more.

    For a process that loaded a whole model to run one stage of it.  A tied weight is kept if any of its names is.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    kept = {id(weight) for name, weight in named if name in keep}
    for _, weight in named:
        if id(weight) not in kept:
            weight.data = weight.data.new_empty(0)


def versions() -> tuple[str, ...]:
    """What a measurement depends on besides the plan."""
    found = [f"python {platform.python_version()}", f"torch {torch.__version__}", f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        found.append(f"cuda {torch.version.cuda}")
    return tuple(found)


def _result(
    rank: int, device: str, seconds: list[float], laps: list[Lap], losses: list[float], pacer: Pacer,
    meter: MemoryMeter, notes: tuple[str, ...],
) -> RankResult:
    return RankResult(
        rank=rank,
        device=device,
        step_seconds=tuple(seconds),
        forward_seconds=tuple(lap.forward_seconds for lap in laps),
        backward_seconds=tuple(lap.backward_seconds for lap in laps),
        optimizer_seconds=tuple(lap.optimizer_seconds for lap in laps),
        peak_bytes=meter.peak_bytes(),
        memory_origin=meter.origin,
        losses=tuple(losses),
        notes=notes,
        versions=versions(),
        pace_seconds=pacer.seconds,
        core_share=pacer.share,
        stages=_stage_seconds(laps),
        receive_seconds=tuple(lap.receive_seconds for lap in laps),
        send_seconds=tuple(lap.send_seconds for lap in laps),
        out_bytes=max(lap.sent_bytes for lap in laps),
        in_bytes=max(lap.received_bytes for lap in laps),
        acts=laps[-1].acts,
    )


def _stage_seconds(laps: list[Lap]) -> tuple[StageSeconds, ...]:
    """Of every stage along the steps; all steps have the same stages."""
    columns = zip(*(lap.stages for lap in laps), strict=True)
    return tuple(
        StageSeconds(
            index=column[0].index,
            forward_seconds=tuple(each.forward_seconds for each in column),
            backward_seconds=tuple(each.backward_seconds for each in column),
        )
        for column in columns
    )
