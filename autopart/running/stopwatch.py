"""How long the parts of a step take on the device that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from autopart.running.emulate import Pace, Part, TimetablePace

__all__ = ["EventStopwatch", "HostStopwatch", "Lap", "Part", "StageLap", "Stopwatch", "stopwatch_for"]

_Seconds = dict[tuple[Part, int | None], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLap:
    """Seconds of one step that one of the rank's stages took."""

    index: int
    forward_seconds: float
    backward_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """Seconds of one step by part, summed over its micro-batches; the loss belongs to the forward part."""

    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    stages: tuple[StageLap, ...] = ()
    """of what was timed as a stage's, ascending"""


class Stopwatch(Protocol):
    """Adds up the time of the parts of a step."""

    def part(self, part: Part, stage: int | None = None) -> AbstractContextManager[None]:
        """Times the body as ``part``, of a stage if there is one."""
        ...

    def take(self) -> Lap:
        """The sums since the last call; waits for the device."""
        ...


class HostStopwatch:
    """For devices that compute while Python waits; emulated speeds are kept here, part by part."""

    def __init__(
        self, pace: Pace | TimetablePace | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._pace = pace or Pace()
        self._clock = clock
        self._seconds: _Seconds = {}

    @contextmanager
    def part(self, part: Part, stage: int | None = None) -> Iterator[None]:
        """Times the body as ``part``, padding to the emulated speed included."""
        start_seconds = self._clock()
        with self._pace.keep(part, stage):
            yield
        self._seconds[part, stage] = self._seconds.get((part, stage), 0.0) + self._clock() - start_seconds

    def take(self) -> Lap:
        """The sums since the last call."""
        seconds, self._seconds = self._seconds, {}
        return _lap(seconds)


class EventStopwatch:
    """For devices that compute asynchronously: events on the stream, read once at the end of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[tuple[Part, int | None], torch.Event, torch.Event]] = []

    @contextmanager
    def part(self, part: Part, stage: int | None = None) -> Iterator[None]:
        """Times what the body puts on the current stream as ``part``."""
        start, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append(((part, stage), start, end))

    def take(self) -> Lap:
        """The sums since the last call; waits for the device."""
        seconds: _Seconds = {}
        for key, start, end in self._events:
            end.synchronize()
            seconds[key] = seconds.get(key, 0.0) + start.elapsed_time(end) / 1e3
        self._events.clear()
        return _lap(seconds)


def stopwatch_for(device: torch.device, speed: float = 1.0) -> Stopwatch:
    """The stopwatch for a device; ``speed`` below 1 is emulated and meant for the cpu."""
    return HostStopwatch(Pace(speed=speed)) if device.type == "cpu" else EventStopwatch(device)


def _lap(seconds: _Seconds) -> Lap:
    def of(part: Part) -> float:
        return sum(each for (what, _), each in seconds.items() if what == part)

    stages = sorted({stage for _, stage in seconds if stage is not None})
    return Lap(
        forward_seconds=of("forward"),
        backward_seconds=of("backward"),
        optimizer_seconds=of("optimizer"),
        stages=tuple(
            StageLap(
                index=stage, forward_seconds=seconds.get(("forward", stage), 0.0),
                backward_seconds=seconds.get(("backward", stage), 0.0),
            )
            for stage in stages
        ),
    )
