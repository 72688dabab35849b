"""Models built without weights: on torch's meta device a tensor has a shape and no memory, and is not drawn."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autopart import cache

__all__ = ["NeedsWeightsError", "Weightless", "is_known", "remember", "weights_left_out"]


class Weightless(TorchFunctionMode):
    """Puts what allocates weights on the meta device, and nothing else.

    ``torch.device("meta")`` alone would also catch the small tables (``torch.linspace`` for drop-path rates) whose
    values constructors read.  Random numbers are not drawn for what has no memory: torch would import its compiler
    to find that out, which takes longer than torch itself.
    """

    _ALLOCATE = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
    _DRAW = (
        torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.bernoulli_, torch.Tensor.exponential_,
        torch.Tensor.log_normal_, torch.Tensor.cauchy_, torch.Tensor.geometric_, torch.Tensor.random_,
    )  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in self._DRAW or getattr(func, "__module__", "") == "torch.nn.init":
            tensor = args[0] if args else named["tensor"]
            if tensor.is_meta:
                return tensor
        if func in self._ALLOCATE and named.get("device") is None:
            named["device"] = "meta"
        return func(*args, **named)


class NeedsWeightsError(Exception):
    """A model that might be another one if it were built with its weights."""


@contextlib.contextmanager
def weights_left_out() -> Iterator[None]:
    """Within, models are built without weights.

    Raises:
        NeedsWeightsError: at the end, if real random numbers were drawn or something was warned about.
    """
    before = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as told, Weightless():
        warnings.simplefilter("always")
        yield
    if told or not torch.equal(before, torch.get_rng_state()):
        raise NeedsWeightsError


def remember(file: Path) -> None:
    """Note that a graph of the model in this file is kept, so that its weights will hardly be needed."""
    cache.write("files", _key(file), b"a graph of it is kept")


def is_known(file: Path) -> bool:
    """Whether that was noted of the file as it is now."""
    return file.is_file() and cache.read("files", _key(file)) is not None


def _key(file: Path) -> tuple[str, ...]:
    return (str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest())
