"""Steps of two runs taken in turn, so that both see the same machine.

A shared or virtual machine is a fifth faster or slower from one minute to the next.  Two runs one after the other are
compared across that drift, two whose steps alternate are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from autopart.running.launching.records import over_path, steps_done

__all__ = ["turn_after"]

_POLL_SECONDS = 0.05


def turn_after(other: str | Path, *, leads: bool, sleep: Callable[[float], None] = time.sleep) -> Callable[[int], None]:
    """A function that returns when it is this run's turn to take step ``index``: 0, 1, ...

    Args:
        other: directory of the other run; once that is over nobody waits for it any more.
        leads: this run takes each step before the other does.
        sleep: seconds.
    """

    def wait(index: int) -> None:
        wanted = index if leads else index + 1
        while steps_done(other) < wanted and not over_path(other).exists():
            sleep(_POLL_SECONDS)

    return wait
