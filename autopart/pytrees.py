"""Make classes known to torch's pytrees, so that their objects can be arguments and results of a traced call.

torch knows tuples, lists and dicts.  Dataclasses are registered as torch.export does it; other objects that hold
tensors, such as the caches of transformers, by their attributes.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

__all__ = ["open_classes", "opened_objects"]

_OPENED: set[type] = set()
"""classes that were registered by their attributes: their objects may be written to by the model"""


def open_classes(nest: Any) -> None:
    """Register the classes of all objects in a nest that hold tensors and that pytrees take for leaves."""
    while unknown := {type(leaf) for leaf in pytree.tree_leaves(nest) if _is_openable(leaf)}:
        for each in unknown:
            if dataclasses.is_dataclass(each):
                torch.export.register_dataclass(each)
            else:
                _register(each)


def opened_objects(nest: Any) -> tuple[Any, ...]:
    """The outermost objects in a nest whose classes ``open_classes`` registered by their attributes."""
    found: list[Any] = []

    def is_leaf(each: Any) -> bool:
        if type(each) in _OPENED:
            found.append(each)
            return True
        return False

    pytree.tree_leaves(nest, is_leaf=is_leaf)
    return tuple(found)


def _is_openable(leaf: Any) -> bool:
    if isinstance(leaf, type | torch.Tensor | nn.Module) or callable(leaf):
        return False
    if dataclasses.is_dataclass(leaf):
        return True
    holds_tensors = hasattr(leaf, "__dict__") and any(isinstance(each, torch.Tensor) for each in _inside(leaf))
    return holds_tensors or _is_cache(leaf)


def _is_cache(thing: Any) -> bool:
    """An object of transformers' that may be without tensors at first, or in this call."""
    kind = type(thing)
    own_equality = any("__eq__" in vars(each) for each in kind.__mro__[:-1])
    is_compared_by_identity = not own_equality and not isinstance(thing, enum.Enum)
    return kind.__module__.startswith("transformers.") and is_compared_by_identity and hasattr(thing, "__dict__")


def _inside(thing: Any, depth: int = 4) -> Iterator[Any]:
    """What is in an object's attributes, in lists and dicts in them, and in objects in those."""
    if isinstance(thing, Mapping):
        children: list[Any] = list(thing.values())
    elif isinstance(thing, list | tuple):
        children = list(thing)
    elif hasattr(thing, "__dict__") and not isinstance(thing, type | nn.Module | torch.Tensor) and not callable(thing):
        children = list(vars(thing).values())
    else:
        children = []
    for child in children:
        yield child
        if depth:
            yield from _inside(child, depth - 1)


def _register(each: type) -> None:
    _OPENED.add(each)
    pytree.register_pytree_node(
        each, _flatten, _unflatten, serialized_type_name=f"{each.__module__}.{each.__qualname__}",
        flatten_with_keys_fn=_flatten_with_keys,
    )  # fmt: skip
    fx_pytree.register_pytree_flatten_spec(each, lambda thing, _: _flatten(thing)[0])


@dataclass(frozen=True, slots=True)
class _Tensor:
    """Stands for the next tensor."""


@dataclass(frozen=True, slots=True)
class _Device:
    """Stands for the device of the object's tensors, which may have been moved."""

    otherwise: torch.device


@dataclass(frozen=True, slots=True)
class _Filled:
    """A container or object with what is in it spelled."""

    kind: type
    keys: tuple[Any, ...]
    values: tuple[Any, ...]


def _flatten(thing: Any) -> tuple[list[torch.Tensor], Any]:
    tensors: list[torch.Tensor] = []
    return tensors, _spelled(thing, tensors)


def _flatten_with_keys(thing: Any) -> tuple[list[tuple[Any, torch.Tensor]], Any]:
    tensors, spelling = _flatten(thing)
    return [(pytree.SequenceKey(index), tensor) for index, tensor in enumerate(tensors)], spelling


def _spelled(thing: Any, tensors: list[torch.Tensor]) -> Any:
    if isinstance(thing, torch.Tensor):
        tensors.append(thing)
        return _Tensor()
    if isinstance(thing, torch.device):
        return _Device(thing)
    if type(thing) in (list, tuple):
        return _Filled(type(thing), (), tuple(_spelled(each, tensors) for each in thing))
    if type(thing) is dict:
        return _Filled(dict, tuple(thing), tuple(_spelled(each, tensors) for each in thing.values()))
    if type(thing) in _OPENED or _is_cache(thing) or any(isinstance(each, torch.Tensor) for each in _inside(thing)):
        own = vars(thing)
        return _Filled(type(thing), tuple(own), tuple(_spelled(each, tensors) for each in own.values()))
    return thing


def _unflatten(tensors: Any, spelling: Any) -> Any:
    tensors = list(tensors)
    device = next((each.device for each in tensors if isinstance(each, torch.Tensor)), None)
    return _rebuilt(spelling, iter(tensors), device)


def _rebuilt(spelling: Any, tensors: Iterator[Any], device: torch.device | None) -> Any:
    if isinstance(spelling, _Tensor):
        return next(tensors)
    if isinstance(spelling, _Device):
        return device or spelling.otherwise
    if not isinstance(spelling, _Filled):
        return spelling
    values = [_rebuilt(each, tensors, device) for each in spelling.values]
    if spelling.kind in (list, tuple):
        return spelling.kind(values)
    if spelling.kind is dict:
        return dict(zip(spelling.keys, values, strict=True))
    made: Any = object.__new__(spelling.kind)
    vars(made).update(zip(spelling.keys, values, strict=True))
    return made
