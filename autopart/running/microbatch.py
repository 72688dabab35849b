"""A batch cut into micro-batches, and their outputs joined again.

A tensor is *batched* when its first dimension is the batch: in the trace it has the size of one micro-batch there,
and what ``step`` is given has ``num_microbatches`` times that.  Everything else goes to every micro-batch as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from autopart.errors import UsageError
from autopart.schema.graph import Graph

__all__ = ["JoinedOutputs", "join_outputs", "split_inputs", "split_targets"]


def split_inputs(
    values: Sequence[torch.Tensor], graph: Graph, num_microbatches: int
) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The model's input tensors for each micro-batch.

    Args:
        values: the tensors of one whole batch, in the order of ``graph.crossing(0)``.
        graph: traced at the size of one micro-batch.
        num_microbatches: into how many the batch is cut.

    Raises:
        UsageError: a tensor has neither the traced shape nor ``num_microbatches`` times its first dimension.
    """
    rows = [
        _split(value, traced.name, traced.shape, num_microbatches)
        for value, traced in zip(values, graph.crossing(0), strict=True)
    ]
    return tuple(tuple(row[index] for row in rows) for index in range(num_microbatches))


def split_targets(targets: Any, batch: int, num_microbatches: int) -> tuple[tuple[Any, ...], ...]:
    """The loss function's targets for each micro-batch.

    Args:
        targets: one target, a tuple of targets, or None for no target; tensors whose first dimension is ``batch``
            are cut, wherever they lie in it.
        batch: samples of the whole batch.
        num_microbatches: into how many the batch is cut.
    """
    if targets is None:
        return ((),) * num_microbatches
    leaves, spec = pytree.tree_flatten(targets if isinstance(targets, tuple) else (targets,))
    rows = [
        leaf.chunk(num_microbatches)
        if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == batch
        else (leaf,) * num_microbatches
        for leaf in leaves
    ]
    return tuple(pytree.tree_unflatten([row[index] for row in rows], spec) for index in range(num_microbatches))


class JoinedOutputs:
    """The model's output tensors for the whole batch, made as those of the micro-batches come.

    Batched tensors are concatenated; a floating scalar (a loss) is averaged, as equal micro-batches allow; any
    other tensor does not depend on the batch and is the first micro-batch's.  Each chunk is copied to its place as it
    comes, so that chunks which nobody else holds are never there all at once beside the joined output.
    """

    def __init__(self, graph: Graph, num_microbatches: int) -> None:
        self._microbatch_size, self._num_microbatches = graph.batch_size, num_microbatches
        self._num_taken = 0
        self.tensors: tuple[torch.Tensor, ...] = ()
        """complete when all chunks have been added"""

    def add(self, chunk: tuple[torch.Tensor, ...]) -> None:
        """The next micro-batch's output tensors."""
        first = self._num_taken * self._microbatch_size
        self._num_taken += 1
        if self._num_microbatches == 1:
            self.tensors = chunk
            return
        self.tensors = self.tensors or tuple(self._room_for(value) for value in chunk)
        for room, value in zip(self.tensors, chunk, strict=True):
            if self._is_batched(value):
                room[first : first + self._microbatch_size] = value
            elif _is_mean(value):
                room += value / self._num_microbatches

    def _room_for(self, value: torch.Tensor) -> torch.Tensor:
        """Where the chunks of an output go, if it is not the same for all."""
        if self._is_batched(value):
            return value.new_empty((self._num_microbatches * self._microbatch_size, *value.shape[1:]))
        return torch.zeros_like(value) if _is_mean(value) else value

    def _is_batched(self, value: torch.Tensor) -> bool:
        return value.dim() > 0 and value.shape[0] == self._microbatch_size


def join_outputs(
    chunks: Iterable[tuple[torch.Tensor, ...]], graph: Graph, num_microbatches: int
) -> tuple[torch.Tensor, ...]:
    """The model's output tensors for the whole batch, from those of the micro-batches; see ``JoinedOutputs``."""
    joined, coming = JoinedOutputs(graph, num_microbatches), iter(chunks)
    for _ in range(num_microbatches):  # no name for the chunk here: it would be there while the next is computed
        joined.add(next(coming))
    return joined.tensors


def _split(
    value: torch.Tensor, name: str, traced: tuple[int, ...], num_microbatches: int
) -> tuple[torch.Tensor, ...]:
    shape = tuple(value.shape)
    if traced and shape == (traced[0] * num_microbatches, *traced[1:]):
        return value.chunk(num_microbatches)
    if shape == traced:
        return (value,) * num_microbatches
    wanted = (traced[0] * num_microbatches, *traced[1:]) if traced else traced
    raise UsageError(
        f"input {name} has shape {shape}, the plan is for {wanted} in {num_microbatches} micro-batches of {traced}; "
        f"give that, or plan again"
    )


def _is_mean(value: torch.Tensor) -> bool:
    return not value.dim() and value.is_floating_point()
