"""Loading what a command needs, the model's own packages included, without looking for garbage all the while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["rare_collections"]

THRESHOLDS = (100_000, 50, 100)
"""objects made between two collections, and collections between two of older objects"""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within, Python collects garbage a fortieth as often: imports make objects that stay.

    Importing torch and transformers takes a seventh less processor time so.
    """
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
