"""A graph at one more batch size without a trace: where two traces are alike, every number is a + b x batch.

Shapes, bytes and FLOPs of a layer are sums of what it does once and what it does for each sample.  Only a peak may be
no such sum, as the larger of two: between the two traced sizes it is then overstated, outside them understated.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass, replace
from typing import Any

from autopart.schema.graph import Graph, Layer

__all__ = ["at_batch", "equal_work"]


class _NotAlikeError(Exception):
    """The two differ in more than numbers that grow with the batch."""


def at_batch(one: Graph, other: Graph, batch_size: int) -> Graph | None:
    """What a trace of ``batch_size`` samples would give, by two traces of the same model with other batches.

    Args:
        one: at one batch size.
        other: at another.
        batch_size: samples of the wanted graph.

    Returns:
        the graph; None if the two are not alike layer by layer and value by value, or if a number does not grow from
        a fixed part by a whole amount per sample.  Signatures are of its own: equal layers have equal ones.
    """
    if one.batch_size == other.batch_size:
        return None
    law = _Law(one.batch_size, other.batch_size, batch_size)
    try:
        found: Graph = law.apply(one, other)
    except (_NotAlikeError, ValueError):
        return None
    return found


def equal_work(one: Graph, other: Graph) -> bool:
    """Whether two graphs are the same but for how their signatures are spelled."""
    return _numbered(one) == _numbered(other)


def _numbered(graph: Graph) -> Graph:
    """With the index of the first such layer in place of each signature."""
    first: dict[str, int] = {}
    return replace(graph, layers=tuple(
        replace(layer, signature=str(first.setdefault(layer.signature, index)))
        for index, layer in enumerate(graph.layers)
    ))  # fmt: skip


class _Law:
    """Numbers at a third batch size, from those at two."""

    def __init__(self, first: int, second: int, wanted: int) -> None:
        self._first, self._second, self._wanted = first, second, wanted

    def apply(self, one: Any, other: Any) -> Any:
        """The thing at the wanted size.

        Raises:
            _NotAlikeError: there is none.
        """
        if type(one) is not type(other):
            raise _NotAlikeError
        if isinstance(one, int) and not isinstance(one, bool):
            return one if one == other else self._number(one, other)
        if isinstance(one, tuple):
            if len(one) != len(other):
                raise _NotAlikeError
            return tuple(map(self.apply, one, other))
        if is_dataclass(one) and not isinstance(one, type):
            return replace(one, **{
                each.name: self._field(one, each.name, getattr(one, each.name), getattr(other, each.name))
                for each in fields(one)
            })  # fmt: skip
        if one != other:
            raise _NotAlikeError
        return one

    def _field(self, owner: Any, name: str, one: Any, other: Any) -> Any:
        if name == "signature" and isinstance(owner, Layer):
            return hashlib.sha256(f"{one} {other} {self._wanted}".encode()).hexdigest()[:16]
        return self.apply(one, other)

    def _number(self, one: int, other: int) -> int:
        each, rest = divmod(other - one, self._second - self._first)
        fixed = one - each * self._first
        if rest or each < 0 or fixed < 0:
            raise _NotAlikeError
        return fixed + each * self._wanted
