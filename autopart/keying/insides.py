"""What Python objects are made of: the code of functions, the cells of closures, the slots of classes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from autopart.keying.codekey import is_users

__all__ = ["code_words", "content", "is_plain_python", "is_users_module", "names_in", "slots_of"]

_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that a Python statement made"""


def code_words(code: types.CodeType) -> Iterator[str]:
    """The instructions, names and constants of a function, without its place in its file."""
    yield from (code.co_code.hex(), *code.co_names, "/", *code.co_freevars, "/")
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from code_words(each)
        elif isinstance(each, frozenset):
            yield from sorted(map(repr, each))
        else:
            yield repr(each)


def names_in(code: types.CodeType) -> set[str]:
    """The names that a function, and the functions in it, look up."""
    inner = (names_in(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*inner)


def content(cell: Any) -> Any:
    """What a cell of a closure holds; None if nothing was assigned yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def is_users_module(value: object) -> bool:
    """Whether it is a module from one of the user's files."""
    return isinstance(value, types.ModuleType) and is_users(vars(value))


def slots_of(kind: type) -> tuple[str, ...]:
    """The slots that a class itself declares."""
    names = vars(kind).get("__slots__", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def is_plain_python(kind: type) -> bool:
    """Whether all that its objects hold is in attributes: no base but ``object`` is written in C."""
    return all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
