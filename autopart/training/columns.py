"""Which part of a data item is which argument of the model, and which is a target.

A *column* is one tensor argument, or one target, over all samples.  Items come as a dict (by the names of the model's
arguments; what has another name is a target, in the order of the dict), as a tuple (the batched arguments in their
order, then the targets) or as one tensor.  Arguments and targets that are not batched are the example's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autopart.errors import UsageError
from autopart.modelsource import Source, batch_of
from autopart.running import Batch

__all__ = ["Layout", "as_tensor", "layout_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns that a model and its loss take, in order, and how a batch is put together from them."""

    source: Source
    """with inputs and targets of one whole batch"""
    argument_names: tuple[str, ...]
    """of the positional arguments"""
    inputs: tuple[str, ...]
    """names of the batched arguments"""
    num_targets: int | None
    """batched ones; None: whatever the data have"""

    def named(self, item: Any) -> dict[str, Any]:
        """The columns of an item by their names.

        Raises:
            UsageError: it lacks a column, or has another number of targets than the loss takes.
        """
        if isinstance(item, Mapping):
            found = {name: item[name] for name in self.inputs if name in item}
            rest = [value for name, value in item.items() if name not in self.inputs]
        else:
            values = list(item) if isinstance(item, tuple | list) else [item]
            found = dict(zip(self.inputs, values, strict=False))
            rest = values[len(self.inputs) :]
        missing = [name for name in self.inputs if name not in found]
        if missing:
            raise UsageError(f"the data have no {missing[0]!r}; the model takes {', '.join(self.inputs)}")
        if self.num_targets is not None and len(rest) != self.num_targets:
            raise UsageError(
                f"the data have {len(rest)} columns beside {', '.join(self.inputs)}, and example_targets() has "
                f"{self.num_targets}; give as many targets"
            )
        return found | {f"target {number}": value for number, value in enumerate(rest)}

    def is_target(self, name: str) -> bool:
        """Whether a column is the loss's, not the model's."""
        return name not in self.inputs

    def batch(self, columns: Mapping[str, torch.Tensor], device: torch.device) -> Batch:
        """What a step is given; the columns that this process does not read may be missing.

        Raises:
            UsageError: a column is of whole numbers where the example has fractions, or the other way round.
        """

        def placed(value: Any, name: str) -> Any:
            value = _like(columns[name], value, name) if name in columns else value
            return value.to(device) if isinstance(value, torch.Tensor) else value

        source = self.source
        return Batch(
            args=tuple(placed(value, name) for name, value in zip(self.argument_names, source.args, strict=True)),
            kwargs={name: placed(value, name) for name, value in source.kwargs.items()},
            target=tuple(placed(value, name) for name, value in self._targets(columns)) or None,
        )

    def _targets(self, columns: Mapping[str, torch.Tensor]) -> list[tuple[str, Any]]:
        """Every target with its column's name; those that are not batched have none."""
        if self.source.targets is None:
            return [(name, value) for name, value in columns.items() if self.is_target(name)]
        batch, number, named = batch_of(self.source), 0, []
        for value in self.source.targets:
            named.append((f"target {number}" if _is_batched(value, batch) else "", value))
            number += _is_batched(value, batch)
        return named


def layout_of(source: Source) -> Layout:
    """The columns of a source whose example inputs are one whole batch."""
    batch, names = batch_of(source), _argument_names(source)
    named = [*zip(names, source.args, strict=True), *source.kwargs.items()]
    return Layout(
        source=source, argument_names=names, inputs=tuple(name for name, value in named if _is_batched(value, batch)),
        num_targets=None if source.targets is None else sum(_is_batched(value, batch) for value in source.targets),
    )  # fmt: skip


def as_tensor(value: Any, name: str) -> torch.Tensor:
    """A column, or a part of it, as a tensor.

    Raises:
        UsageError: it is neither a tensor nor an array of numbers.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value))  # a copy, so that nobody writes to the user's array or file
    raise UsageError(f"{name} of the data is a {type(value).__name__}, not a tensor or an array of numbers")


def _is_batched(value: Any, batch: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == batch


def _like(column: torch.Tensor, example: Any, name: str) -> torch.Tensor:
    """The column in the type of the example, which is what the model was traced with."""
    if not isinstance(example, torch.Tensor) or column.dtype == example.dtype:
        return column
    if column.is_floating_point() != example.is_floating_point():
        raise UsageError(
            f"{name} of the data is {column.dtype}, the example's is {example.dtype}; give numbers of that kind"
        )
    return column.to(example.dtype)


def _argument_names(source: Source) -> tuple[str, ...]:
    """Of the positional arguments as the model's forward calls them."""
    bound = inspect.signature(source.model.forward).bind(*source.args, **source.kwargs)
    names = [name for name in bound.arguments if name not in source.kwargs]
    if len(names) != len(source.args):  # *args
        return tuple(f"argument {number}" for number in range(len(source.args)))
    return tuple(names)
