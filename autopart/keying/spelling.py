"""Python values in a hash that is the same in every process, or a refusal."""

from __future__ import annotations

import enum
import functools
import hashlib
import logging
import pathlib
import random
import re
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket

from autopart.keying.codekey import is_torch, is_users
from autopart.keying.insides import code_words, content, is_plain_python, is_users_module, names_in, slots_of

__all__ = ["CannotSpellError", "Spelling"]

MOST_VALUE_BYTES = 2**24
"""of a tensor that is neither parameter nor buffer; its values are in the hash"""
MOST_VALUES = 2000
"""in a global variable or a function of a class; the rest is data"""
MOST_CLASS_VALUES = 200
"""in a class's own variable"""
_BOXES = (dict, list, tuple, deque, set, frozenset, str, int, float)
"""whose subclasses may have attributes as well"""
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...), torch.dtype, torch.device, torch.memory_format,
    torch.layout, range, slice, np.dtype,
)  # fmt: skip
_BY_NAME = (
    types.ModuleType, logging.Logger, random.Random, np.random.Generator, np.random.RandomState, torch.Generator,
)  # fmt: skip
"""modules are known by their files; dice change no graph, as whoever throws one in Python is not traced"""
_BUILT_IN = (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType, np.ufunc)


class CannotSpellError(Exception):
    """A value that has no spelling that other processes would give it too."""


class Spelling:
    """A hash of values, in the order in which they are added; what was there before is a reference to it."""

    def __init__(self, *, stands_for: str = "") -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # so that no id comes twice
        self._storages: dict[int, int] = {}
        self._meta = stands_for or "meta"
        self._left = -1

    def copy(self) -> Spelling:
        """One that goes on from here without this one."""
        other = Spelling(stands_for=self._meta)
        other._digest, other._left = self._digest.copy(), self._left
        other._seen, other._kept, other._storages = dict(self._seen), [*self._kept], dict(self._storages)
        return other

    def hexdigest(self) -> str:
        """Of all that was added."""
        return self._digest.hexdigest()

    def add(self, value: Any) -> None:
        """Spell a value with all that it holds.

        Raises:
            CannotSpellError: something in it cannot be spelled.
        """
        self._left -= 1
        if self._left == 0:
            raise CannotSpellError("too many values")
        kind = type(value)
        if kind in _PLAIN:
            self._write(kind.__name__, repr(value))
        elif kind is tuple:
            self._sequence(value)
        elif kind is torch.Size:
            self._write("Size", repr(tuple(value)))
        elif id(value) in self._seen:
            self._write("seen", str(self._seen[id(value)]))
        else:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
            self._write(kind.__module__, kind.__qualname__)
            self._spell(kind, value)

    def add_call(self, nest: Any) -> None:
        """Spell a call's arguments: of tensors the form, of all else the values.

        Raises:
            CannotSpellError: something in it cannot be spelled.
        """
        leaves, structure = torch.utils._pytree.tree_flatten(nest)
        self._write("call", str(structure))
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                self._tensor(leaf, with_values=False)
            else:
                self.add(leaf)

    def add_leniently(self, name: str, value: Any, *, most: int) -> None:
        """Spell a value as far as it can be, and at most so many values in it."""
        self._write(name)
        before, self._left = self._left, most if self._left < 0 else min(most, self._left)
        try:
            self.add(value)
        except (CannotSpellError, RecursionError):
            self._write("and more", type(value).__qualname__)
        self._left = before

    def _write(self, *words: str) -> None:
        for word in words:
            self._digest.update(f"{len(word)}:{word}".encode(errors="surrogatepass"))

    def _spell(self, kind: type, value: Any) -> None:
        spell = next((spell for kinds, spell in _SPELLINGS if isinstance(value, kinds)), None)
        if spell is None:
            return self._object(kind, value)
        spell(self, value)
        if isinstance(value, _BOXES) and kind.__module__ not in ("builtins", "collections"):
            self._mapping(getattr(value, "__dict__", {}))

    def _sequence(self, value: Any) -> None:
        self._write(type(value).__name__, str(len(value)))
        for each in value:
            self.add(each)

    def _mapping(self, value: Any) -> None:
        self._write("items", str(len(value)))
        items = dict.items(value) if isinstance(value, dict) else value.items()  # some load things when asked
        for key, each in items:
            self.add(key)
            self.add(each)

    def _set(self, value: Any) -> None:
        if not all(type(each) in _PLAIN for each in value):
            raise CannotSpellError("a set of more than words and numbers has no order")
        self._write("set", *sorted(repr(each) for each in value))

    def _enum(self, value: Any) -> None:
        self._write("enum", str(value.name))

    def _text(self, value: Any) -> None:
        self._write("text", str(value))

    def _named(self, value: Any) -> None:
        self._write("named", str(getattr(value, "name", getattr(value, "__name__", ""))))

    def _class(self, value: Any) -> None:
        """Its name; and its functions, which may have been replaced since it was read from its file."""
        self._write("class", value.__module__, value.__qualname__)
        if is_torch(value.__module__) or value.__module__ in ("builtins", "typing", "abc", "collections"):
            return
        for base in value.__bases__:
            self.add(base)
        for name, each in vars(value).items():
            inner = getattr(each, "__func__", None) or getattr(each, "fget", None) or each
            if isinstance(inner, types.FunctionType):
                self.add_leniently(name, inner, most=MOST_VALUES)
            elif not name.startswith("__"):
                self.add_leniently(name, each, most=MOST_CLASS_VALUES)

    def _function(self, value: types.FunctionType) -> None:
        self._write("function", value.__module__ or "", value.__qualname__)
        if is_torch(value.__module__ or ""):
            return
        self._write(*code_words(value.__code__))
        for each in (value.__defaults__, value.__kwdefaults__, dict(vars(value))):
            self.add(each)
        for cell in value.__closure__ or ():
            self.add(content(cell))
        if is_users(value.__globals__):
            self._globals(value)

    def _globals(self, value: types.FunctionType) -> None:
        """The global variables that a function of the user's names, and those of the user's modules among them."""
        names, spaces = sorted(names_in(value.__code__)), [value.__globals__]
        spaces += [vars(each) for name in names if is_users_module(each := value.__globals__.get(name))]
        for space in spaces:
            for name in names:
                if name in space:
                    self.add_leniently(name, space[name], most=MOST_VALUES)

    def _built_in(self, value: Any) -> None:
        self._write("built-in", str(getattr(value, "__module__", "")), getattr(value, "__qualname__", value.__name__))
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType):
            self.add(owner)

    def _method(self, value: types.MethodType) -> None:
        self.add(value.__func__)
        self.add(value.__self__)

    def _cached(self, value: Any) -> None:
        self.add(value.__wrapped__)

    def _partial(self, value: functools.partial[Any]) -> None:
        for each in (value.func, value.args, value.keywords):
            self.add(each)

    def _array(self, value: Any) -> None:
        if value.dtype.hasobject or value.nbytes > MOST_VALUE_BYTES:
            raise CannotSpellError("an array of objects, or a large one")
        self._write(str(value.dtype), str(value.shape))
        self._digest.update(np.ascontiguousarray(value).tobytes())

    def _module(self, value: nn.Module) -> None:
        self.add(type(value))
        for name, each in vars(value).items():
            self._write(name)
            if name in ("_parameters", "_buffers"):
                for weight_name, weight in each.items():
                    self._write(weight_name)
                    self._weight(weight)
            elif name.endswith("_hooks") and isinstance(each, dict):
                self._sequence(tuple(each.values()))  # they are numbered through the process
            elif not name.endswith(("_hooks_with_kwargs", "_hooks_always_called")):
                self.add(each)
            else:
                self._write(str(len(each)))

    def _weight(self, value: Any) -> None:
        if value is None or id(value) in self._seen:
            return self.add(value)
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        self._tensor(value, with_values=False)

    def _attribute(self, value: torch.Tensor) -> None:
        self._tensor(value, with_values=True)

    def _tensor(self, value: torch.Tensor, *, with_values: bool) -> None:
        if type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer) or value.layout is not torch.strided:
            raise CannotSpellError(f"a {type(value).__name__} of layout {value.layout}")
        storage = self._storages.setdefault(value.untyped_storage()._cdata, len(self._storages))
        self._kept.append(value)
        device = self._meta if value.is_meta else str(value.device)
        self._write(
            type(value).__name__, str(tuple(value.shape)), str(value.dtype), str(value.stride()), device, str(storage),
            str(value.storage_offset()), str(value.requires_grad), str(value.is_leaf),
        )  # fmt: skip
        self.add(dict(vars(value)))
        if with_values:
            if value.is_meta or value.nbytes > MOST_VALUE_BYTES:
                raise CannotSpellError("a tensor whose values cannot be read")
            self._array(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    def _weak(self, value: Any) -> None:
        self.add(value())

    def _object(self, kind: type, value: Any) -> None:
        """Whatever else: its class and attributes, if all that it holds is in attributes."""
        slots = [name for base in kind.__mro__ for name in slots_of(base)]
        if not hasattr(value, "__dict__") and not slots:
            raise CannotSpellError(f"a {kind.__qualname__}")
        if not is_plain_python(kind):
            raise CannotSpellError(f"a {kind.__qualname__} holds more than its attributes")
        self.add(kind)
        held = getattr(value, "__dict__", {})
        # hash() of words is another in each process; transformers' generation config keeps one of itself
        self._mapping({name: each for name, each in held.items() if not (name.endswith("_hash") and type(each) is int)})
        self._mapping({name: getattr(value, name) for name in slots if hasattr(value, name)})


_SPELLINGS: tuple[tuple[Any, Callable[[Spelling, Any], None]], ...] = (
    (nn.Module, Spelling._module),
    (torch.Tensor, Spelling._attribute),
    (enum.Enum, Spelling._enum),
    ((dict, types.MappingProxyType), Spelling._mapping),
    ((list, tuple, deque), Spelling._sequence),
    ((set, frozenset), Spelling._set),
    (type, Spelling._class),
    (types.FunctionType, Spelling._function),
    (types.MethodType, Spelling._method),
    (functools.partial, Spelling._partial),
    (functools._lru_cache_wrapper, Spelling._cached),
    (_BUILT_IN, Spelling._built_in),
    (_BY_NAME, Spelling._named),
    ((np.ndarray, np.generic), Spelling._array),
    ((str, int, float, pathlib.PurePath, re.Pattern, OpOverload, OpOverloadPacket), Spelling._text),
    (weakref.ref, Spelling._weak),
)
"""tried in order"""
