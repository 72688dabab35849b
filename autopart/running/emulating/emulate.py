"""Emulated devices: a process that takes ``1 / speed`` times as long as the work it does.

The work is done at full speed, then the process sleeps until a deadline, ``start + own CPU time / speed``.  A
deadline absorbs the time that the process waited for a core on a busy machine; a sleep in proportion to the
elapsed time would add to it.

``TimetablePace`` sleeps until a plan's own times have passed, whatever the work took: so devices that are not here can
be rehearsed, and what is measured beside the prediction is the schedule and its messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from autopart.schema.plan import Plan

__all__ = ["Pace", "Part", "TimetablePace", "timetable"]

Part = Literal["forward", "backward", "optimizer"]

HALF = 0.5
"""of a backward, that zero-bubble takes in two"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Stretches work to the duration it has on a device of a fraction of this one's speed.

    ``cpu_clock`` is the CPU time of this thread alone: the devices that are emulated run one intra-op thread, and
    autograd runs a CPU backward on the thread that asked for it.
    """

    speed: float = 1.0
    clock: Callable[[], float] = time.perf_counter
    cpu_clock: Callable[[], float] = time.thread_time
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise ValueError(f"speed must be in (0, 1], not {self.speed}")

    @contextmanager
    def keep(self, part: Part = "forward", stage: int | None = None) -> Iterator[None]:
        """Runs the body, then sleeps until its deadline; at speed 1 it only runs the body.

        >>> with Pace(speed=0.5).keep():
        ...     pass
        """
        if self.speed == 1:
            yield
            return
        start_seconds, start_cpu_seconds = self.clock(), self.cpu_clock()
        yield
        deadline_seconds = start_seconds + (self.cpu_clock() - start_cpu_seconds) / self.speed
        left_seconds = deadline_seconds - self.clock()
        if left_seconds > 0:
            self.sleep(left_seconds)


@dataclass(slots=True, kw_only=True)
class TimetablePace:
    """Stretches every part of a step to the time that a table gives; a part that is not in it only runs.

    What takes longer than its time is not shortened, but counted.
    """

    seconds: Mapping[tuple[Part, int | None], float]
    """of one micro-batch of a stage, or of a rank's optimizer (stage None)"""
    in_two: frozenset[int] = frozenset()
    """stages whose forward is two bodies with one time: the layers, then the loss"""
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    num_parts: int = 0
    num_late: int = 0
    _started: dict[int, float] = field(default_factory=dict)

    @contextmanager
    def keep(self, part: Part = "forward", stage: int | None = None) -> Iterator[None]:
        """Runs the body, then sleeps until its time has passed."""
        start_seconds = self.clock()
        yield
        if part == "forward" and stage in self.in_two:
            if stage not in self._started:
                self._started[stage] = start_seconds
                return
            start_seconds = self._started.pop(stage)
        if (part, stage) in self.seconds:
            left_seconds = start_seconds + self.seconds[part, stage] - self.clock()
            self.num_parts += 1
            self.num_late += left_seconds < 0
            self.sleep(max(0.0, left_seconds))


def timetable(plan: Plan, device: str) -> TimetablePace:
    """The times that a plan predicts for the stages of a device."""
    mine = [stage for stage in plan.stages if device in stage.devices]
    share = HALF if plan.schedule.name == "zero-bubble" else 1.0
    seconds: dict[tuple[Part, int | None], float] = {("optimizer", None): sum(each.optimizer_seconds for each in mine)}
    for stage in mine:
        seconds["forward", stage.index] = stage.forward_seconds
        seconds["backward", stage.index] = share * stage.backward_seconds
    last = len(plan.stages) - 1
    has_loss = plan.job.mode == "train" and mine[-1].index == last
    return TimetablePace(seconds=seconds, in_two=frozenset({last}) if has_loss else frozenset())
