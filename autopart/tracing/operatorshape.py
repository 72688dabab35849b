"""The shape of one operator call as ``Work.shape`` words it: what decides its time beside FLOPs and traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["operator_shape"]


def operator_shape(
    family: str, args: Sequence[Any], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> tuple[int, ...]:
    """Sizes of a call; empty where the family has no wording for it.

    Args:
        family: of the operator, as in ``Work.family``.
        args: its positional arguments.
        inputs: the tensors among them.
        outputs: the tensors that it returns.
    """
    if family == "gemm":
        return _product(inputs)
    if family == "convolution":
        return _convolution(inputs, outputs[0])
    if family == "attention" and len(inputs) >= 3 and inputs[0].ndim == 4:
        query, key = inputs[0].shape, inputs[1].shape
        return (int(query[0] * query[1]), int(query[2]), int(key[2]), int(query[3]))
    if family == "softmax" and len(args) > 1 and isinstance(args[1], int):
        return _rows(outputs[0], int(outputs[0].shape[args[1]]) if outputs[0].ndim else 1)
    if family == "normalization":
        sizes = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
        return _rows(outputs[0], math.prod(map(int, sizes))) if sizes else ()
    if family in ("elementwise", "copy", "reduction", "embedding"):
        elements = int(outputs[0].numel())
        return (sum(tensor.numel() == elements for tensor in inputs), elements)
    return ()


def _product(inputs: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Of the last two operands, matrices or batches of them; an earlier one is what is added."""
    if len(inputs) < 2 or inputs[-1].ndim != inputs[-2].ndim or inputs[-1].ndim < 2:
        return ()
    left, right = inputs[-2].shape, inputs[-1].shape
    if left[-1] != right[-2]:
        return ()
    return (math.prod(map(int, left[:-2])), int(left[-2]), int(right[-1]), int(left[-1]))


def _convolution(inputs: Sequence[torch.Tensor], output: torch.Tensor) -> tuple[int, ...]:
    image, weight = inputs[0].shape, inputs[1].shape
    if len(image) < 3 or image[1] % weight[1] or output.shape[1] != weight[0]:  # transposed, or without a batch
        return ()
    sizes = (image[2:], output.shape[2:], weight[2:])
    groups = int(image[1] // weight[1])
    return (int(image[0]), int(image[1]), int(weight[0]), *(math.prod(map(int, size)) for size in sizes), groups)


def _rows(output: torch.Tensor, length: int) -> tuple[int, ...]:
    return (int(output.numel()) // max(length, 1), length)
