"""A decoder's graph at any number of tokens, from its traces at two.

All that a decoder does but attention is done to every token alike: FLOPs, traffic, rows of a product are
a + b x tokens.  A peak is the larger of several such sums, and so is overstated between the traced sizes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from autopart.errors import TracingError
from autopart.schema.graph import Graph, Layer, Value, Work

__all__ = ["TokenLaw"]

Line = Callable[[int, int], int]
"""a figure at the wanted number of tokens, from those at the two"""


class TokenLaw:
    """Two traces, and what follows from them."""

    def __init__(self, few: Graph, many: Graph, num_few: int, num_many: int) -> None:
        """Takes the traces with their numbers of tokens.

        Raises:
            TracingError: the layers are not the same, so nothing follows.
        """
        if [each.name for each in few.layers] != [each.name for each in many.layers] or [
            (each.name, each.producer, each.consumers) for each in few.values
        ] != [(each.name, each.producer, each.consumers) for each in many.values]:
            raise TracingError(
                f"{few.model} has other layers at {num_few} tokens than at {num_many}, so prompt and answer cannot be "
                "planned together; use --mode infer"
            )
        self._few, self._many, self._num_few, self._num_many = few, many, num_few, num_many

    def at(self, num_tokens: int) -> Graph:
        """The graph for so many tokens in one forward pass; attention is not to be believed.

        Raises:
            TracingError: a layer's operators are not the same in both traces.
        """

        def line(one: int, other: int) -> int:
            run, rise = self._num_many - self._num_few, other - one
            return max(0, one - -(rise * (num_tokens - self._num_few)) // run if rise else one)

        layers = zip(self._few.layers, self._many.layers, strict=True)
        values = zip(self._few.values, self._many.values, strict=True)
        return replace(
            self._few, layers=tuple(_layer(one, other, line, num_tokens) for one, other in layers),
            values=tuple(_value(one, other, line) for one, other in values),
        )  # fmt: skip


def _layer(one: Layer, other: Layer, line: Line, num_tokens: int) -> Layer:
    ones, others = _summed(one), _summed(other)
    if list(map(_identity, ones)) != list(map(_identity, others)):
        raise TracingError(f"{one.name} does other work at other numbers of tokens; use --mode infer")
    name = f"{one.signature} {other.signature} {num_tokens}"
    return replace(
        one, work=tuple(_work(*pair, line) for pair in zip(ones, others, strict=True)),
        peak_bytes=line(one.peak_bytes, other.peak_bytes), saved_bytes=0,
        signature=hashlib.sha256(name.encode()).hexdigest()[:16],
    )  # fmt: skip


SHAPED = ("gemm", "attention", "softmax", "normalization")
"""families whose time depends on the shape; of others calls of an operator are summed, since which of them are alike
depends on the number of tokens"""


def _summed(layer: Layer) -> list[Work]:
    """The work of a layer in an order that both traces share."""
    shaped = [work for work in layer.work if work.family in SHAPED]
    rest: dict[tuple[object, ...], Work] = {}
    for work in layer.work:
        if work.family not in SHAPED:
            sofar = rest.get(_identity(work))
            rest[_identity(work)] = replace(work, shape=()) if sofar is None else replace(
                sofar, num_calls=sofar.num_calls + work.num_calls, flops=sofar.flops + work.flops,
                traffic_bytes=sofar.traffic_bytes + work.traffic_bytes,
            )  # fmt: skip
    return sorted([*shaped, *rest.values()], key=_identity)


def _identity(work: Work) -> tuple[object, ...]:
    """What two traces of one operator share."""
    return (work.family, work.operator, work.dtype, work.shape[2:] if work.family == "gemm" else ())


def _work(one: Work, other: Work, line: Line) -> Work:
    return replace(
        one, num_calls=line(one.num_calls, other.num_calls), flops=line(one.flops, other.flops),
        traffic_bytes=line(one.traffic_bytes, other.traffic_bytes),
        shape=tuple(map(line, one.shape, other.shape)) if len(one.shape) == len(other.shape) else (),
    )  # fmt: skip


def _value(one: Value, other: Value, line: Line) -> Value:
    return replace(one, bytes=line(one.bytes, other.bytes), shape=())
