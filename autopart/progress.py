"""How long work tells whoever waits how far it is."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[str, int, int], None]
"""called with (what is being done, units done, units in all), in ascending order"""


def silent(what: str, done: int, total: int) -> None:
    """A Progress that says nothing."""
