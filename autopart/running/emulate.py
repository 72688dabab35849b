"""Emulated devices: a process that takes ``1 / speed`` times as long as the work it does.

The work is done at full speed, then the process sleeps until a deadline, ``start + own CPU time / speed``.  A
deadline absorbs the time that the process waited for a core on a busy machine; a sleep in proportion to the
elapsed time would add to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Pace"]


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
    def keep(self) -> Iterator[None]:
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
