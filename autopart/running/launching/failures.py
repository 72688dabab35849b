"""An exception that ends a rank, put into words for whoever started it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

import autopart
from autopart.errors import AutopartError
from autopart.running.launching.records import RankFailure

__all__ = ["failure_of"]

_OWN = str(Path(autopart.__file__).parent)
_STDLIB = str(Path(traceback.__file__).parent)


def failure_of(
    error: BaseException, rank: int, device: str, clock: Callable[[], float] = time.time
) -> RankFailure:
    """What a rank leaves behind about the exception that ends it; ``clock`` gives seconds since 1970."""
    now_seconds = clock()
    origin = _origin(error)
    lines = [line.strip() for line in str(origin).splitlines() if line.strip()]
    is_ours = isinstance(origin, AutopartError)
    return RankFailure(
        rank=rank,
        device=device,
        kind=type(origin).__name__,
        message=lines[0] if lines else "no message",
        detail=origin.detail if isinstance(origin, AutopartError) else "\n".join([*_their_lines(origin), *lines[1:]]),
        is_usage=is_ours,
        unix_seconds=now_seconds,
    )


def _origin(error: BaseException) -> BaseException:
    """The user's exception: torch's stage wraps it in one that lists the shapes of the arguments."""
    while isinstance(error, RuntimeError) and "failed to run" in str(error).lower() and error.__cause__ is not None:
        error = error.__cause__
    return error


def _their_lines(error: BaseException) -> list[str]:
    """The traceback without autopart's, torch's and Python's own frames; the last three frames if none is left."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame for frame in frames
        if not frame.filename.startswith((_OWN, _STDLIB, "<")) and "site-packages" not in frame.filename
    ]
    return "".join(traceback.format_list(theirs or frames[-3:])).rstrip().splitlines()
