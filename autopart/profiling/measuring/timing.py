"""Read the time between points of a device's work."""

from __future__ import annotations

import statistics
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

__all__ = ["Clock", "Laps", "laps_on", "median_and_spread", "num_threads_set", "own_stream"]

Clock = Callable[[], float]


class Laps(Protocol):
    """Marks in a device's work."""

    @abstractmethod
    def mark(self) -> None:
        """Note this point."""

    @abstractmethod
    def seconds(self) -> list[float]:
        """The times between consecutive marks; waits until the device has come to the last."""


class _ClockLaps:
    """For the processor, whose operators are done when they return."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[float] = []

    def mark(self) -> None:
        self._marks.append(self._clock())

    def seconds(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self._marks, self._marks[1:], strict=False)]


class _EventLaps:
    """For CUDA: an event in the current stream of the device.  Not verified on hardware yet."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def seconds(self) -> list[float]:
        torch.cuda.synchronize(self._device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [float(earlier.elapsed_time(later)) / 1000 for earlier, later in pairs]


def laps_on(device: torch.device, clock: Clock = time.perf_counter) -> Laps:
    """A stopwatch for one run on ``device``."""
    return _EventLaps(device) if device.type == "cuda" else _ClockLaps(clock)


def median_and_spread(samples: Sequence[float]) -> tuple[float, float]:
    """The median, and the interquartile range over the median (0 for fewer than four samples)."""
    median = statistics.median(samples)
    if len(samples) < 4 or not median:
        return median, 0.0
    low, _, high = statistics.quantiles(samples, n=4)
    return median, (high - low) / median


@contextmanager
def num_threads_set(num_threads: int | None) -> Iterator[None]:
    """Torch's intra-op threads in this process, put back afterwards; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """On CUDA a stream of its own, which waits for what was sent before; elsewhere nothing.

    Not verified on hardware yet.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
