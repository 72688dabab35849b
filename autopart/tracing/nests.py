"""Arguments and results as data: nests of tuples, lists and dicts described so that they can be compared and rebuilt.

Other containers are refused: an object that a block could write to would carry values past its results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from autopart.tracing.likeness import is_plain

__all__ = ["OpaqueError", "described", "fresh_like", "layout", "rebuilt"]

_TENSORS = (torch.Tensor, nn.Parameter, FakeTensor)


class OpaqueError(Exception):
    """There is something in a nest that may change, or may hide a tensor."""


def described(nest: Any, tensors: list[torch.Tensor]) -> Any:
    """The nest with its tensors replaced by their places in ``tensors``, to which new ones are added.

    Raises:
        OpaqueError: the nest holds anything but tensors, tuples, lists, dicts and plain values.
    """
    if isinstance(nest, torch.Tensor):
        place = next((index for index, tensor in enumerate(tensors) if tensor is nest), len(tensors))
        if place == len(tensors):
            tensors.append(nest)
        return torch.Tensor, place
    if type(nest) in (tuple, list):
        return type(nest), tuple(described(each, tensors) for each in nest)
    if type(nest) is dict and all(type(key) is str for key in nest):
        return dict, tuple((key, described(each, tensors)) for key, each in nest.items())
    if is_plain(nest):
        return type(nest), nest
    raise OpaqueError(f"a value of type {type(nest).__name__}")


def rebuilt(description: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The nest that was described, with these tensors in their places."""
    kind, content = description
    if kind is torch.Tensor:
        return tensors[content]
    if kind in (tuple, list):
        return kind(rebuilt(each, tensors) for each in content)
    if kind is dict:
        return {key: rebuilt(each, tensors) for key, each in content}
    return content


def layout(tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """All that shapes and memory tell of tensors: which of them share it, too.

    Raises:
        OpaqueError: a tensor of an unknown class, or a size that is not known.
    """
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    return tuple(
        (_sizes(tensor), tensor.dtype, tensor.device, tensor.requires_grad, tensor.is_conj(), tensor.is_neg(),
         storages.index(storage))
        for tensor, storage in zip(tensors, storages, strict=True)
    )  # fmt: skip


def _sizes(tensor: torch.Tensor) -> tuple[Any, ...]:
    sizes = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
    if type(tensor) not in _TENSORS or tensor.layout is not torch.strided:
        raise OpaqueError(f"a tensor of class {type(tensor).__name__}")
    if any(type(each) is not int for each in (*sizes[0], *sizes[1], sizes[2])):
        raise OpaqueError("a tensor of unknown size")
    return sizes


def fresh_like(tensor: torch.Tensor) -> torch.Tensor:
    """A new tensor with the same sizes, strides, type, device and gradient flag."""
    return torch.empty_strided(
        tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=tensor.device,
        requires_grad=tensor.requires_grad and torch.is_grad_enabled(),
    )  # fmt: skip
