"""What the commands write, and where: results to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import typer

from autopart.errors import UsageError
from autopart.progress import Progress, silent

__all__ = ["Loudness", "complain", "discard_output", "loudness", "note", "print_result", "progress_bar", "write_result"]

Loudness = Literal["quiet", "normal", "verbose"]
_LOUDNESS: ContextVar[Loudness] = ContextVar("loudness", default="normal")

EXIT_BROKEN_PIPE = 128 + 13


def print_result(text: str) -> None:
    """Writes a result, with one newline at its end, to standard output.

    Raises:
        typer.Exit: nobody reads it any more; the code is that of a process that SIGPIPE ended.
        UsageError: it cannot be written, to a full disk for example.
    """
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        raise typer.Exit(EXIT_BROKEN_PIPE) from None
    except OSError as error:
        discard_output()
        raise UsageError(f"standard output cannot be written: {error.strerror}; give a file with -o") from None


def discard_output() -> None:
    """Gives what is still buffered for standard output somewhere to go: Python flushes it once more when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def loudness(level: Loudness) -> Iterator[None]:
    """Within, notes and progress are as many as that: quiet has none, verbose a line for each step in a log too."""
    token = _LOUDNESS.set(level)
    try:
        yield
    finally:
        _LOUDNESS.reset(token)


def note(text: str) -> None:
    """Writes a line to standard error, unless --quiet was given."""
    if _LOUDNESS.get() != "quiet":
        complain(text)


def complain(text: str) -> None:
    """Writes a line to standard error that even --quiet shows."""
    print(text, file=sys.stderr)


def write_result(thing: object, path: Path | None) -> None:
    """Writes a dataclass as JSON to ``path``, if there is one, and says so."""
    from autopart.schema.store import save

    if path is not None:
        save(thing, path)
        note(f"wrote {path}")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A Progress that draws a bar on standard error; where that is no terminal, lines with --verbose, else nothing."""
    level = _LOUDNESS.get()
    if level == "quiet" or not sys.stderr.isatty():
        yield _told if level == "verbose" else silent
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    with Bars(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _told(what: str, done: int, total: int) -> None:
    note(f"autopart: {what} {done}/{total}")
