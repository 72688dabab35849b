"""A Program: the live torch.fx graph of a model, and its Graph on paper.

The user's module keeps all state: the graph refers to its Parameter and buffer objects, never to copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from autopart.schema.graph import Graph

__all__ = ["Program", "Segment"]


class Segment(nn.Module):
    """Layers ``first`` .. ``last - 1`` as a module on their own.

    Its inputs are the values that cross boundary ``first``, its outputs those that cross boundary ``last``, both
    in the order of ``Graph.crossing``; values that only pass by are relayed.  So segments that tile the model
    compose: ``b(*a(*inputs))``.
    """

    first: int
    last: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    weight_names: tuple[str, ...]
    """the original's names of the parameters and buffers it uses"""

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise AssertionError  # draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A traced model, for the shapes of one micro-batch and one training flag."""

    module: nn.Module
    """the user's own"""
    graph: Graph
    graph_module: fx.GraphModule

    def flatten_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """The tensors of a call, in the order of ``graph.crossing(0)``."""
        raise AssertionError

    def unflatten_outputs(self, values: tuple[torch.Tensor, ...]) -> Any:
        """What the model would return, from the values of ``graph.crossing(len(graph.layers))``."""
        raise AssertionError

    def segment(self, first: int, last: int) -> Segment:
        """Layers first .. last - 1, sharing the user's Parameter objects."""
        raise AssertionError
