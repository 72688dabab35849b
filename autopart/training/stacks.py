"""Where the ranks of a run that stands still are, asked from outside.

Each rank writes its Python stack when it gets SIGUSR1 (``faulthandler``, which works inside of any call).  A rank that
waits for another is inside of torch.distributed; one that is elsewhere is what the others wait for; and one that writes
nothing is stopped, or its machine is.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autopart.training.records import pid_path, stack_path

__all__ = ["Standing", "ask", "blamed", "read_stack"]

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_WAITING = f"{os.sep}torch{os.sep}distributed{os.sep}"
_MAIN = "rank.py"
_OWN = (f"{os.sep}site-packages{os.sep}", f"{os.sep}autopart{os.sep}", f"{os.sep}lib{os.sep}python", "<")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a rank is."""

    rank: int
    answers: bool
    waits: bool
    """for another rank"""
    where: str
    """the user's own innermost line, or else the innermost of all; empty if it does not answer"""
    stack: str


def ask(
    directory: str | Path, num_ranks: int, *, patience_seconds: float = 2.0, sleep: Callable[[float], None] = time.sleep
) -> tuple[Standing, ...]:
    """Where each rank is; waits that long for answers."""
    ranks = range(num_ranks)
    for rank in ranks:
        path = pid_path(directory, rank)
        if path.exists():
            try:
                os.kill(int(path.read_text()), signal.SIGUSR1)
            except ProcessLookupError:  # it ended meanwhile, and does not answer
                continue
    sleep(patience_seconds)
    texts = (stack_path(directory, rank) for rank in ranks)
    return tuple(
        read_stack(rank, path.read_text(errors="replace") if path.exists() else "")
        for rank, path in zip(ranks, texts, strict=True)
    )


def read_stack(rank: int, text: str) -> Standing:
    """What the stacks that faulthandler wrote say of the main thread."""
    threads = [block for block in re.split(r"\n(?=\S)", text) if _MAIN in block]
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(threads[-1] if threads else text)]
    if not frames:
        return Standing(rank=rank, answers=False, waits=False, where="", stack=text)
    theirs = [frame for frame in frames if not any(part in frame[0] for part in _OWN)]
    file, line = (theirs or frames)[0]
    return Standing(rank=rank, answers=True, waits=_WAITING in frames[0][0], where=f"{file}:{line}", stack=text)


def blamed(standings: Sequence[Standing]) -> Standing | None:
    """The rank that the others wait for: one that does not answer, or else one that does not wait; None: all wait."""
    return next((each for each in standings if not each.answers), None) or next(
        (each for each in standings if not each.waits), None
    )
