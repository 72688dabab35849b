"""Random numbers that a trace would fix for ever: those of Python and numpy, by the names that models draw them by."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autopart.tracing.sites import CannotTraceError

__all__ = ["without_chance"]

_TORCH = str(Path(torch.__file__).parent)
_DRAWS = {
    random: ("random", "uniform", "randint", "randrange", "choice", "choices", "sample", "shuffle", "gauss"),
    np.random: (
        "rand", "randn", "random", "random_sample", "randint", "uniform", "normal", "choice", "permutation", "shuffle",
        "beta", "binomial", "geometric", "poisson",
    ),
}  # fmt: skip


@contextlib.contextmanager
def without_chance() -> Iterator[None]:
    """Within, a model that draws from the random numbers of Python or numpy gets a CannotTraceError, at the line.

    Draws by names imported before, and from generators of the model's own, are found only after the trace.
    """
    originals = [(module, name, getattr(module, name)) for module, names in _DRAWS.items() for name in names]
    try:
        for module, name, original in originals:
            setattr(module, name, _guarded(original, f"{module.__name__}.{name}()"))
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _guarded(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    def draw(*args: Any, **kwargs: Any) -> Any:
        if sys._getframe(1).f_code.co_filename.startswith(_TORCH):
            return original(*args, **kwargs)
        raise CannotTraceError(f"{name} draws another number at every call, and a trace would fix it")

    return draw
