"""Models by text: ``model.py[:name]``, ``package.module:name``, ``hf:DIR``, ``torchvision:NAME``, ``timm:NAME``.

A Python file or module defines ``build_model()`` and ``example_inputs()``, and for training, if it likes,
``loss_fn(output, *targets)`` and ``example_targets()``::

    def build_model() -> nn.Module: ...                  # or any class, function or module, chosen by :name
    def example_inputs(): return (torch.rand(8, 16),)    # args, or a dict of kwargs, or (args, kwargs)
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.architectures import SCHEMES
from autopart.errors import ModelSourceError, UsageError
from autopart.restoring import chance_kept
from autopart.usercode import call, import_file, import_module
from autopart.weightless import is_known, weights_left_out

__all__ = ["DTYPES", "Source", "batch_of", "file_of", "folder_of", "load", "with_batch", "with_weights"]

DTYPES = {
    "float64": torch.float64, "fp64": torch.float64, "float32": torch.float32, "fp32": torch.float32,
    "float16": torch.float16, "fp16": torch.float16, "half": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}
"""what ``--dtype`` takes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model with one example batch."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    loss_fn: Callable[..., torch.Tensor] | None = None
    """called with the model's output and the targets"""
    targets: tuple[Any, ...] | None = None
    name: str
    """for people: ``gpt2.py``, ``Net``"""
    text: str
    """what ``load`` was given, so that another process can load the same"""
    recipe: Callable[[], Source] | None = None
    """of a model whose weights were left out for now, on the meta device: loads it with them"""

    @property
    def weightless(self) -> bool:
        """Whether the model would have weights if it had not been built without."""
        return self.recipe is not None


def load(
    text: str, *, dtype: str | None = None, seed: int = 0, directory: str | Path | None = None,
    may_lack_weights: bool = False,
) -> Source:  # fmt: skip
    """The model, and its example batch, that ``text`` names.

    Args:
        text: ``model.py[:name]``, ``package.module:name``, ``hf:DIR``, ``torchvision:NAME`` or ``timm:NAME``.
        dtype: one of ``DTYPES``; parameters, buffers and floating-point inputs are cast to it.
        seed: of torch's generators, before the file runs and again before the inputs are made, so that every
            process that loads the same text has the same weights and inputs.
        directory: what a relative path starts from; None means the working directory.
        may_lack_weights: a file of which a graph is kept (``weightless.remember``) may be built without weights, if
            it can be; ``with_weights`` then loads it again.

    Raises:
        ModelSourceError: there is no such model, or its code raises; then the message shows the user's line.
        UsageError: ``dtype`` is unknown.
    """
    target = _dtype(dtype)
    file = file_of(text, directory)
    if not may_lack_weights or file is None or not is_known(file):
        return _load(text, target, seed, directory, contextlib.nullcontext())
    try:
        with chance_kept():
            source = _load(text, target, seed, directory, weights_left_out())
    except Exception:  # whatever stands in its way, the usual way shows
        return _load(text, target, seed, directory, contextlib.nullcontext())
    again = functools.partial(_load, text, target, seed, directory, contextlib.nullcontext())
    return replace(source, recipe=functools.cache(again))


def with_weights(source: Source) -> Source:
    """The source with the weights that were left out."""
    return with_batch(source.recipe(), batch_of(source)) if source.recipe is not None else source


def file_of(text: str, directory: str | Path | None = None) -> Path | None:
    """The Python file that a model text names; None if it names none."""
    where = text if text.endswith(".py") else text.rpartition(":")[0]
    return _under(directory, where) if where.endswith(".py") else None


def _load(
    text: str, target: torch.dtype | None, seed: int, directory: str | Path | None,
    building: contextlib.AbstractContextManager[None],
) -> Source:  # fmt: skip
    torch.manual_seed(seed)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        place = str(_under(directory, rest)) if scheme == "hf" else rest
        model, args, kwargs = SCHEMES[scheme](place, target)
        return Source(model=model, args=args, kwargs=kwargs, name=Path(rest).name or rest, text=text)
    where, name = _split(text)
    module = _module(where, directory)
    with building:
        model = _model(module, name, where)
    torch.manual_seed(seed)
    source = Source(
        model=model, **_inputs(module, where), loss_fn=_loss_fn(module, where), targets=_targets(module, where),
        name=name or Path(where).name, text=text,
    )
    return source if target is None else _cast(source, target)


def batch_of(source: Source) -> int:
    """Number of samples of the example batch: dimension 0 of the first tensor input.

    Raises:
        ModelSourceError: no input is a tensor with a dimension.
    """
    for leaf in pytree.tree_leaves((source.args, source.kwargs)):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return leaf.shape[0]
    raise ModelSourceError(
        f"{source.text}: example_inputs() has no tensor with a batch; return tensors with samples along dim 0"
    )


def folder_of(source: Source) -> Path:
    """Where the source's file lies; the working directory for a model that is in no file."""
    scheme, _, place = source.text.partition(":")
    if scheme == "hf":
        return Path(place) if Path(place).is_dir() else Path(place).parent
    file = file_of(source.text)
    return Path() if file is None else file.parent


def with_batch(source: Source, batch: int) -> Source:
    """The source with inputs and targets of ``batch`` samples: the example's, repeated in turn or cut short.

    Every tensor whose dimension 0 is as long as the first input's is taken to be batched.

    Raises:
        UsageError: ``batch`` is below 1.
        ModelSourceError: no input is a tensor with a dimension.
    """
    if batch < 1:
        raise UsageError(f"a batch has at least 1 sample, not {batch}; give --batch 1 or more")
    old = batch_of(source)
    if old == batch:
        return source
    if not old:
        raise ModelSourceError(f"{source.text}: example_inputs() has a batch of 0 samples; return at least 1")

    def resized(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.dim() or leaf.shape[0] != old:
            return leaf
        return leaf.index_select(0, torch.arange(batch, device=leaf.device) % old)

    return _map_data(source, resized)


def _split(text: str) -> tuple[str, str]:
    where, _, name = text.rpartition(":")
    if where and name.isidentifier():
        return where, name
    if text.endswith(":"):
        raise ModelSourceError(f"{text!r} names nothing after the colon; give {text}NAME or {text[:-1]}")
    return text, ""


def _module(where: str, directory: str | Path | None) -> ModuleType:
    path = _under(directory, where)
    if where.endswith(".py") or "/" in where or path.exists():
        return import_file(path)
    if all(part.isidentifier() for part in where.split(".")):
        return import_module(where)
    schemes = ", ".join(f"{scheme}:…" for scheme in SCHEMES)
    raise ModelSourceError(f"{where!r} names no model; give model.py[:name], package.module:name, {schemes}")


def _under(directory: str | Path | None, place: str) -> Path:
    return Path(place) if directory is None else Path(directory) / place


def _model(module: ModuleType, name: str, where: str) -> nn.Module:
    chosen = getattr(module, name or "build_model", None)
    if chosen is None:
        names = ", ".join(_candidates(module)) or "nothing callable"
        wanted = name or "build_model()"
        raise ModelSourceError(f"{where} has no {wanted}; it has {names}: choose one with {where}:NAME")
    what = f"{where}: {name or 'build_model'}"
    if not isinstance(chosen, nn.Module):
        if not callable(chosen):
            raise ModelSourceError(f"{what} is {_a(chosen)}, not a function or an nn.Module; choose another name")
        _check_no_arguments(chosen, what)
        chosen = call(chosen, what=f"{what}()")
    if not isinstance(chosen, nn.Module):
        raise ModelSourceError(f"{what}() returned {_a(chosen)}, not an nn.Module; return the model")
    return chosen


def _candidates(module: ModuleType) -> list[str]:
    """Names in the module that may stand for a model: its own functions and classes, and modules."""
    return [
        name for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, nn.Module) or (callable(value) and getattr(value, "__module__", "") == module.__name__))
    ]


def _check_no_arguments(function: Callable[..., Any], what: str) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ModelSourceError(
            f"{what} cannot be called without arguments ({error}); write a function that can"
        ) from None
    except ValueError:  # a builtin without a signature: the call itself will tell
        return


def _inputs(module: ModuleType, where: str) -> dict[str, Any]:
    function = getattr(module, "example_inputs", None)
    if not callable(function):
        raise ModelSourceError(
            f"{where} has no example_inputs(); write one that returns the tuple of arguments of one call, "
            f"def example_inputs(): return (torch.rand(8, 16),)"
        )
    made = call(function, what=f"{where}: example_inputs()")
    if isinstance(made, torch.Tensor):
        return {"args": (made,), "kwargs": {}}
    if isinstance(made, dict):
        return {"args": (), "kwargs": dict(made)}
    if isinstance(made, tuple | list):
        pair = len(made) == 2 and isinstance(made[0], tuple | list) and isinstance(made[1], dict)
        return {"args": tuple(made[0]), "kwargs": dict(made[1])} if pair else {"args": tuple(made), "kwargs": {}}
    raise ModelSourceError(
        f"{where}: example_inputs() returned {_a(made)}; return a tuple of args, a dict of kwargs, or (args, kwargs)"
    )


def _loss_fn(module: ModuleType, where: str) -> Callable[..., torch.Tensor] | None:
    function: Callable[..., torch.Tensor] | None = getattr(module, "loss_fn", None)
    if function is not None and not callable(function):
        raise ModelSourceError(f"{where}: loss_fn is {_a(function)}; make it a function loss_fn(output, *targets)")
    return function


def _targets(module: ModuleType, where: str) -> tuple[Any, ...] | None:
    function = getattr(module, "example_targets", None)
    if function is None:
        return None
    if not callable(function):
        raise ModelSourceError(f"{where}: example_targets is {_a(function)}; make it a function without arguments")
    made = call(function, what=f"{where}: example_targets()")
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise UsageError(f"--dtype {name!r} is unknown; give one of {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def _cast(source: Source, dtype: torch.dtype) -> Source:
    def cast(leaf: Any) -> Any:
        return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    return replace(_map_data(source, cast), model=source.model.to(dtype))


def _map_data(source: Source, change: Callable[[Any], Any]) -> Source:
    args, kwargs, targets = pytree.tree_map(change, (source.args, source.kwargs, source.targets))
    return replace(source, args=args, kwargs=kwargs, targets=targets)


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
