"""How long the parts of a step take on the device that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from autopart.running.emulate import Pace

__all__ = ["EventStopwatch", "HostStopwatch", "Lap", "Part", "Stopwatch", "stopwatch_for"]

Part = Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lap:
    """Seconds of one step by part, summed over its micro-batches; the loss belongs to the forward part."""

    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float


class Stopwatch(Protocol):
    """Adds up the time of the parts of a step."""

    def part(self, part: Part) -> AbstractContextManager[None]:
        """Times the body as ``part``."""
        ...

    def take(self) -> Lap:
        """The sums since the last call; waits for the device."""
        ...


class HostStopwatch:
    """For devices that compute while Python waits; emulated speeds are kept here, part by part."""

    def __init__(self, pace: Pace | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pace = pace or Pace()
        self._clock = clock
        self._seconds: dict[Part, float] = {}

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Times the body as ``part``, padding to the emulated speed included."""
        start_seconds = self._clock()
        with self._pace.keep():
            yield
        self._seconds[part] = self._seconds.get(part, 0.0) + self._clock() - start_seconds

    def take(self) -> Lap:
        """The sums since the last call."""
        seconds, self._seconds = self._seconds, {}
        return _lap(seconds)


class EventStopwatch:
    """For devices that compute asynchronously: events on the stream, read once at the end of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[Part, torch.Event, torch.Event]] = []

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Times what the body puts on the current stream as ``part``."""
        start, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append((part, start, end))

    def take(self) -> Lap:
        """The sums since the last call; waits for the device."""
        seconds: dict[Part, float] = {}
        for part, start, end in self._events:
            end.synchronize()
            seconds[part] = seconds.get(part, 0.0) + start.elapsed_time(end) / 1e3
        self._events.clear()
        return _lap(seconds)


def stopwatch_for(device: torch.device, speed: float = 1.0) -> Stopwatch:
    """The stopwatch for a device; ``speed`` below 1 is emulated and meant for the cpu."""
    return HostStopwatch(Pace(speed=speed)) if device.type == "cpu" else EventStopwatch(device)


def _lap(seconds: dict[Part, float]) -> Lap:
    return Lap(
        forward_seconds=seconds.get("forward", 0.0),
        backward_seconds=seconds.get("backward", 0.0),
        optimizer_seconds=seconds.get("optimizer", 0.0),
    )
