"""How long the parts of a step take on the device that runs them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch

from autopart.running.emulating.emulate import Pace, Part, TimetablePace
from autopart.running.launching.records import Act

__all__ = ["EventStopwatch", "HostStopwatch", "Lap", "Part", "StageLap", "Stopwatch", "stopwatch_for"]

ActKind = Literal["forward", "backward", "optimizer", "receive"]

LEAST_WAIT_SECONDS = 1e-4
"""that is told as an act of its own"""

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
    receive_seconds: float = 0.0
    """before the computations: waiting for what they need; 0 where the device computes while Python goes on"""
    send_seconds: float = 0.0
    """after the last one: waiting until what was sent is taken; 0 likewise"""
    sent_bytes: int = 0
    received_bytes: int = 0
    acts: tuple[Act, ...] = field(default=(), compare=False)
    """one after the other, if ``start`` was called"""


class Stopwatch(Protocol):
    """Adds up the time of the parts of a step, and the bytes that travel."""

    def start(self) -> None:
        """Says that a step begins: what passes between its parts is waiting."""
        ...

    def travels(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """Says that messages are exchanged."""
        ...

    def part(
        self, part: Part, stage: int | None = None, microbatch: int | None = None
    ) -> AbstractContextManager[None]:
        """Times the body as ``part``, of a stage and a micro-batch if there is one."""
        ...

    def take(self) -> Lap:
        """The sums since the last call; waits for the device."""
        ...


class _Counting:
    """The bytes that travel."""

    def __init__(self) -> None:
        self._sent_bytes = self._received_bytes = 0

    def travels(self, *, sent_bytes: int = 0, received_bytes: int = 0) -> None:
        """Says that messages are exchanged."""
        self._sent_bytes += sent_bytes
        self._received_bytes += received_bytes

    def _counted(self, lap: Lap) -> Lap:
        lap = replace(lap, sent_bytes=self._sent_bytes, received_bytes=self._received_bytes)
        self._sent_bytes = self._received_bytes = 0
        return lap


class HostStopwatch(_Counting):
    """For devices that compute while Python waits; emulated speeds are kept here, part by part."""

    def __init__(
        self, pace: Pace | TimetablePace | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__()
        self._pace = pace or Pace()
        self._clock = clock
        self._seconds: _Seconds = {}
        self._begin: float | None = None
        self._last: float | None = None
        self._waits = {"receive": 0.0, "send": 0.0}
        self._acts: list[Act] = []

    def start(self) -> None:
        """Says that a step begins."""
        self._begin = self._last = self._clock()

    @contextmanager
    def part(self, part: Part, stage: int | None = None, microbatch: int | None = None) -> Iterator[None]:
        """Times the body as ``part``, padding to the emulated speed included."""
        start_seconds = self._clock()
        self._waited("send" if part == "optimizer" else "receive", start_seconds)
        if self._last is not None and start_seconds - self._last > LEAST_WAIT_SECONDS:
            self._note_wait(part, stage, microbatch, self._last, start_seconds)
        with self._pace.keep(part, stage):
            yield
        end_seconds = self._clock()
        self._note(part, stage, microbatch, start_seconds, end_seconds)
        self._seconds[part, stage] = self._seconds.get((part, stage), 0.0) + end_seconds - start_seconds
        self._last = None if self._last is None else end_seconds

    def _note_wait(
        self, part: Part, stage: int | None, microbatch: int | None, start_seconds: float, end_seconds: float
    ) -> None:
        """What lies before a part is waiting for what it needs, unless it needs nothing from another rank."""
        before = self._acts[-1] if self._acts else None
        is_loss = before is not None and (before.kind, before.stage, before.microbatch) == (part, stage, microbatch)
        if part == "backward" or (part == "forward" and stage and not is_loss):
            self._note("receive", stage, microbatch, start_seconds, end_seconds, gradient=part == "backward")

    def _note(
        self, kind: ActKind, stage: int | None, microbatch: int | None, start_seconds: float, end_seconds: float, *,
        gradient: bool = False,
    ) -> None:  # fmt: skip
        if self._begin is not None:
            self._acts.append(Act(
                kind=kind, stage=stage, microbatch=microbatch, start_seconds=start_seconds - self._begin,
                end_seconds=end_seconds - self._begin, gradient=gradient,
            ))  # fmt: skip

    def take(self) -> Lap:
        """The sums since the last call."""
        self._waited("send", self._clock())
        seconds, self._seconds, self._last, self._begin = self._seconds, {}, None, None
        waits, self._waits = self._waits, dict.fromkeys(self._waits, 0.0)
        acts, self._acts = tuple(self._acts), []
        lap = replace(_lap(seconds), receive_seconds=waits["receive"], send_seconds=waits["send"], acts=acts)
        return self._counted(lap)

    def _waited(self, what: str, now_seconds: float) -> None:
        if self._last is not None:
            self._waits[what] += now_seconds - self._last


class EventStopwatch(_Counting):
    """For devices that compute asynchronously: events on the stream, read once at the end of a step."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._begin: torch.Event | None = None
        self._events: list[tuple[tuple[Part, int | None], int | None, torch.Event, torch.Event]] = []

    def start(self) -> None:
        """Says that a step begins; waits are on the device's streams, not between its parts, and are not told."""
        self._begin = torch.Event(self._device, enable_timing=True)
        self._begin.record()

    @contextmanager
    def part(self, part: Part, stage: int | None = None, microbatch: int | None = None) -> Iterator[None]:
        """Times what the body puts on the current stream as ``part``."""
        start, end = (torch.Event(self._device, enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._events.append(((part, stage), microbatch, start, end))

    def take(self) -> Lap:
        """The sums since the last call; waits for the device."""
        seconds: _Seconds = {}
        acts: list[Act] = []
        for (part, stage), microbatch, start, end in self._events:
            end.synchronize()
            taken_seconds = start.elapsed_time(end) / 1e3
            seconds[part, stage] = seconds.get((part, stage), 0.0) + taken_seconds
            if self._begin is not None:
                since_seconds = self._begin.elapsed_time(start) / 1e3
                acts.append(Act(kind=part, stage=stage, microbatch=microbatch, start_seconds=since_seconds,
                                end_seconds=since_seconds + taken_seconds))  # fmt: skip
        self._events.clear()
        self._begin = None
        return self._counted(replace(_lap(seconds), acts=tuple(acts)))


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
