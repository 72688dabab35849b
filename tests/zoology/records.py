"""The results file: JSON lines, the last of a name counts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from tests.zoology.result import Result

__all__ = ["latest", "read", "write"]

_ADAPTER = TypeAdapter(Result)


def read(path: Path) -> list[Result]:
    """All results, oldest first."""
    if not path.exists():
        return []
    return [_ADAPTER.validate_json(line) for line in path.read_text().splitlines() if line.strip()]


def write(path: Path, result: Result) -> None:
    """Append one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(_ADAPTER.dump_json(result).decode() + "\n")


def latest(results: Iterable[Result], names: Iterable[str]) -> list[Result]:
    """The last result of each name, in the order of names."""
    found = {result.name: result for result in results}
    return [found[name] for name in names if name in found]
