"""The metrics file: one JSON object per step and line, each step once however often the training was interrupted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from autopart.schema import store
from autopart.schema.training import StepRecord

__all__ = ["Tail", "append", "cut_after", "read"]


def append(path: Path, record: StepRecord) -> None:
    """Adds a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n")


class Tail:
    """The records that are added to a metrics file from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset_bytes = path.stat().st_size if path.exists() else 0

    def new(self) -> tuple[StepRecord, ...]:
        """Those since the last call; a line that is still being written comes with the next."""
        if not self._path.exists():
            return ()
        with self._path.open("rb") as file:
            file.seek(self._offset_bytes)
            whole = file.read().rpartition(b"\n")[0]
        self._offset_bytes += len(whole) + 1 if whole else 0
        return tuple(_parsed(line, self._path) for line in whole.decode("utf-8").split("\n")) if whole else ()


def read(path: Path) -> tuple[StepRecord, ...]:
    """All records in a file; a last line without its end is left out."""
    if not path.exists():
        return ()
    return tuple(_parsed(line, path) for line in path.read_text(encoding="utf-8").split("\n")[:-1])


def cut_after(path: Path, step: int) -> None:
    """Drops the records of later steps, which will be done again, and what is no whole line."""
    if path.exists():
        kept = [record for record in read(path) if record.step <= step]
        text = "".join(json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n" for record in kept)
        store.write_text(text, path)


def _parsed(line: str, path: Path) -> StepRecord:
    return store.parse(StepRecord, line, where=str(path))
