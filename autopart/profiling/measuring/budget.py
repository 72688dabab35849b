"""Time that measuring may take."""

from __future__ import annotations

import time

from autopart.profiling.measuring.timing import Clock

__all__ = ["Budget"]


class Budget:
    """So many seconds from now on.

    >>> Budget(60.0, clock=lambda: 0.0).allows(61.0)
    False
    """

    def __init__(self, seconds: float, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._ends = clock() + seconds

    def allows(self, seconds: float) -> bool:
        """Whether so much more may be begun now."""
        return self._clock() + seconds < self._ends
