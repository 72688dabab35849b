"""A call of a custom ``autograd.Function`` as one operator of a graph, so that its own backward is kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["FunctionCall"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionCall:
    """Applies a custom ``autograd.Function`` to tensors, with all else that it was called with fixed.

    As the target of a graph's node it takes a list of tensors and gives a list of tensors.
    """

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]
    """the leaves of the call's arguments; None where a tensor comes in"""
    places: tuple[int, ...]
    """positions among ``arguments`` of the tensors that come in, in order"""
    structure: pytree.TreeSpec
    writes: tuple[int, ...]
    """which of the incoming tensors it changes in place"""

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors among the function's results."""
        return [leaf for leaf in pytree.tree_leaves(self.apply(tensors)) if isinstance(leaf, torch.Tensor)]

    def apply(self, tensors: list[torch.Tensor]) -> Any:
        """All that the function returns."""
        leaves = list(self.arguments)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        return self.function.apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def on(self, device: torch.device) -> FunctionCall:
        """The same call with devices among its arguments replaced."""
        moved = tuple(device if isinstance(leaf, torch.device) else leaf for leaf in self.arguments)
        return dataclasses.replace(self, arguments=moved)

    @property
    def __name__(self) -> str:
        return self.function.__name__

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}{self.arguments}"
