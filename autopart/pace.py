"""How fast this machine is just now, by a fixed piece of work.

Shared and virtual machines drift: the same code takes a quarter longer a minute later.  Whoever measures notes the pace
meanwhile, so that a wrong prediction can be told from a change of the machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

__all__ = ["Pacer", "clock_for"]

SHAPE = (256, 768, 3072)
NUM_MATRICES = 4
"""38 MB: more than a core's own cache holds, as a model's weights are"""


class Pacer:
    """Takes the time of a few float32 matrix products whenever asked, about 50 ms on one core.

    On devices other than the processor, which do not drift so, it does nothing.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float], wall: Callable[[], float] = time.perf_counter
    ) -> None:
        rows, inner, columns = SHAPE
        self._clock, self._wall = clock, wall
        self._left = torch.ones(rows, inner)
        self._matrices = [torch.ones(inner, columns) for _ in range(NUM_MATRICES if device.type == "cpu" else 0)]
        self._samples: list[float] = []
        self._shares: list[float] = []
        self._work()

    def sample(self) -> None:
        """Time the work once, now."""
        began, started = self._wall(), self._clock()
        self._work()
        taken, passed = self._clock() - started, self._wall() - began
        self._samples.append(taken)
        self._shares.append(min(1.0, taken / passed) if passed > 0 else 1.0)

    @property
    def seconds(self) -> float:
        """The median of the samples; 0 if there are none or the device has no pace."""
        return statistics.median(self._samples) if self._samples and self._matrices else 0.0

    @property
    def share(self) -> float:
        """Of the time that passed, what the clock counted: below 1 other processes had the core; 1 if not known."""
        return statistics.median(self._shares) if self._shares and self._matrices else 1.0

    def _work(self) -> None:
        for matrix in self._matrices:
            self._left @ matrix


def clock_for(num_threads: int | None) -> Callable[[], float]:
    """Thread time for a device of one thread, which other processes cannot lengthen; else wall time."""
    return time.thread_time if num_threads == 1 else time.perf_counter
