"""Which modules of a model are alike, so that the trace of one is the trace of the others.

Two modules are alike if their types, submodules, weights' shapes and plain attributes are equal.  Whole numbers may
differ (``layer_idx``): they are watched while one of the modules is traced, and whoever reads one gives it away.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

__all__ = ["Block", "blocks_of", "is_plain", "plain_state", "watched"]

_NO_MATTER = ("_state_dict", "_load_state_dict")
"""hooks that do not run in forward"""
PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip

Integer = tuple[nn.Module, str, int]
"""an attribute that holds a whole number: owner, name, value"""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A child of a ModuleList or Sequential that has others like it."""

    path: str
    module: nn.Module
    likeness: Any
    """equal for modules that are alike"""
    integers: tuple[Integer, ...]
    varying: tuple[int, ...]
    """positions of the integers that are not the same in all that are alike"""

    def agrees(self, other: Block, positions: Iterable[int]) -> bool:
        """Whether these integers are the same in both."""
        return all(self.integers[each][2] == other.integers[each][2] for each in positions)


def blocks_of(model: nn.Module, *, fewest: int) -> tuple[Block, ...]:
    """The repeated blocks of a model on the meta device, those with at least ``fewest`` alike; none on others.

    Modules that share a weight or a submodule with the rest of the model, or that have hooks, are left out.
    """
    if not all(weight.is_meta for weight in model.parameters()):
        return ()
    shared = _shared(model)
    described: dict[Any, list[tuple[str, nn.Module, tuple[Integer, ...]]]] = {}
    for path, container in model.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        for name, child in container.named_children():
            if next(child.children(), None) is not None and _is_alone(child, shared):
                integers: list[Integer] = []
                likeness = _likeness(child, integers)
                described.setdefault(likeness, []).append((f"{path}.{name}".lstrip("."), child, tuple(integers)))
    return tuple(
        Block(path=path, module=child, likeness=likeness, integers=integers, varying=varying)
        for likeness, alike in described.items()
        if len(alike) >= fewest
        for varying in [_varying([integers for _, _, integers in alike])]
        for path, child, integers in alike
    )


def plain_state(module: nn.Module) -> Any:
    """What blocks are compared by, now: different if forward has changed a plain attribute, or one in a container."""
    integers: list[Integer] = []
    return _likeness(module, integers), [(name, value) for _, name, value in integers]


def _shared(model: nn.Module) -> set[int]:
    """Identities of the modules and weights that are in the model more than once."""
    things = (model.named_modules, model.named_parameters, model.named_buffers)
    counts = Counter(id(each) for find in things for _, each in find(remove_duplicate=False))
    return {key for key, count in counts.items() if count > 1}


def _is_alone(module: nn.Module, shared: set[int]) -> bool:
    weights = [*module.parameters(), *module.buffers()]
    return all(weight.is_meta for weight in weights) and not any(
        id(each) in shared for each in (*module.modules(), *weights)
    )


def _varying(integers: list[tuple[Integer, ...]]) -> tuple[int, ...]:
    columns = zip(*integers, strict=True)
    return tuple(index for index, column in enumerate(columns) if len({value for _, _, value in column}) > 1)


def _likeness(module: nn.Module, integers: list[Integer]) -> Any:
    """What forward could look at, whole numbers apart, which go to ``integers``."""
    found: list[Any] = [type(module)]
    for name, value in vars(module).items():
        if name == "_modules":
            found += [(key, child and _likeness(child, integers)) for key, child in value.items()]
        elif name in ("_parameters", "_buffers"):
            found += [(name, key, tensor is not None and _weight(tensor)) for key, tensor in value.items()]
        elif type(value) is int:
            found.append((name, int))
            integers.append((module, name, value))
        elif not name.startswith(_NO_MATTER):
            found.append((name, _attribute(value)))
    return tuple(found)


def _weight(tensor: torch.Tensor) -> Any:
    return type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad


def _attribute(value: Any) -> Any:
    """A plain value itself, what is in plain containers, the identity of everything else."""
    if is_plain(value):
        return type(value), value
    if type(value) in (tuple, list, torch.Size):
        return type(value), tuple(_attribute(each) for each in value)
    if isinstance(value, dict):
        return type(value), tuple((_attribute(key), _attribute(each)) for key, each in value.items())
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_attribute(each) for each in value)
    if isinstance(value, functools.partial):
        return functools.partial, _attribute((value.func, value.args, value.keywords))
    return "object", id(value)


def is_plain(value: Any) -> bool:
    """Whether a value cannot change and is equal to another if and only if code cannot tell them apart."""
    return type(value) in PLAIN or isinstance(value, type | FunctionType | BuiltinFunctionType)


@contextlib.contextmanager
def watched(block: Block) -> Iterator[set[int]]:
    """Within, gives the positions of those of the block's varying integers that have been read."""
    seen: set[int] = set()
    integers = [(position, *block.integers[position]) for position in block.varying]
    for position, owner, name, value in integers:
        vars(owner)[name] = _Watched(value, functools.partial(seen.add, position))
    try:
        yield seen
    finally:
        for _, owner, name, value in integers:
            if type(vars(owner).get(name)) is _Watched:
                vars(owner)[name] = value


class _Watched:
    """Behaves like a whole number and says so when anything depends on which one it is."""

    def __init__(self, value: int, note: Callable[[], None]) -> None:
        self._value, self._note = value, note

    @property
    def __class__(self) -> type:  # isinstance(layer_idx, int) holds, and gives nothing away
        return int

    @__class__.setter
    def __class__(self, _: type) -> None:
        raise TypeError("cannot be changed")

    def __getattr__(self, name: str) -> Any:
        self._note()
        return getattr(self._value, name)


def _noted(name: str) -> Callable[..., Any]:
    method = getattr(int, name)

    def read(self: _Watched, *others: Any) -> Any:
        self._note()
        plain = (other._value if type(other) is _Watched else other for other in others)
        return method(self._value, *plain)

    return read


_ARITHMETIC = (
    "add", "sub", "mul", "floordiv", "mod", "divmod", "pow", "truediv", "lshift", "rshift", "and", "or", "xor",
)  # fmt: skip
for _name in (
    *(f"__{kind}{each}__" for each in _ARITHMETIC for kind in ("", "r")),
    *(f"__{each}__" for each in ("eq", "ne", "lt", "le", "gt", "ge", "hash", "bool", "index", "int", "float", "neg")),
    *(f"__{each}__" for each in ("abs", "invert", "pos", "repr", "str", "format", "round", "trunc", "floor", "ceil")),
):
    setattr(_Watched, _name, _noted(_name))
