"""What a stage holds whose layers are run again in the backward: of each layer only what comes into it.

A value that several layers read is one tensor, held once, from the stage's first reader that is run again; what came in
from the stage before is in its receive buffer anyway.  Layers that are not run again (``Layer.reruns``) keep what they
save.  While a layer's backward runs, the layers after it have let go of what they held, and the layer itself has saved
everything: with H the bytes held up to and including a layer, X what its second run saves beyond that, B what its
backward needs and g the gradients that the layers after it have made, the peak is the largest H + X + B + g along the
layers (Chen et al. 2016, section 3, with a layer as the segment).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.memorywalk import LayerNeeds, Sweep, passes
from autopart.schema.graph import Graph, Value

__all__ = ["Rerun", "beyond_inputs", "held_from", "rerun", "rerun_table"]

Ints = npt.NDArray[np.int64]
NOWHERE = -(2**62)
"""less than any sum of bytes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """Bytes of stages (integers, or arrays over their ends), of one micro-batch."""

    held: object
    """instead of what is saved"""
    first: object
    """as in ``Passes``, beyond all that is held"""
    later: object


def held_from(graph: Graph) -> tuple[int | None, ...]:
    """Of every value the layer from which on it is held for a backward; None: no layer holds it."""
    return tuple(_holder(graph, value) for value in graph.values)


def _holder(graph: Graph, value: Value) -> int | None:
    readers = [each for each in value.consumers if each < len(graph.layers) and graph.layers[each].reruns]
    saver = value.saved_by
    keepers = [] if saver is None or graph.layers[saver].reruns else [saver]
    return min((*readers, *keepers), default=None)


def _own_bytes(graph: Graph) -> list[int]:
    """Of every layer that is not run again, what it saves beside values; 0 of the others."""
    own = [0 if layer.reruns else layer.saved_bytes for layer in graph.layers]
    for value in graph.values:
        if value.saved_by is not None and own[value.saved_by]:
            own[value.saved_by] -= value.bytes
    return [max(0, each) for each in own]


def beyond_inputs(graph: Graph) -> list[int]:
    """Of every layer that is run again, what it saves then beyond what came into it; 0 of the others."""
    extra = [layer.saved_bytes if layer.reruns else 0 for layer in graph.layers]
    for value in graph.values:
        if value.saved_by is not None and value.producer < value.saved_by and extra[value.saved_by]:
            extra[value.saved_by] -= value.bytes
    return [max(0, each) for each in extra]


def rerun(graph: Graph, begin: int, end: int) -> Rerun:
    """Of layers begin .. end - 1, by going through them."""
    held = _own_bytes(graph)[begin:end]
    for value, holder in zip(graph.values, held_from(graph), strict=True):
        if holder is not None and value.producer >= begin and holder < end:
            held[holder - begin] += value.bytes
    walked = passes(graph, begin, end, saved=held, extra=beyond_inputs(graph)[begin:end])
    return Rerun(held=sum(held), first=walked.first, later=walked.later)


def rerun_table(graph: Graph, needs: LayerNeeds, boundaries: tuple[int, ...]) -> Rerun:
    """Of the stages between all pairs of boundaries, as arrays [begin, end]; entries with begin < end count."""
    starts, size, extra = np.asarray(boundaries), len(boundaries), np.asarray(beyond_inputs(graph))
    so_far = _held_so_far(graph, starts)
    tables = {name: np.zeros((size, size), dtype=np.int64) for name in ("held", "first", "later")}
    bare = replace(needs, first=needs.first + extra, later=needs.later + extra, saved=np.zeros_like(needs.saved))
    sweep = Sweep(graph, bare, starts)
    for column, end in enumerate(boundaries[1:], start=1):
        sweep.take(boundaries[column - 1], end)
        rows = slice(0, column)
        held = so_far[rows, end - 1]
        tables["held"][rows, column] = held
        tables["first"][rows, column] = (so_far[rows, :end] + sweep.first(column, end)).max(axis=1) - held
        tables["later"][rows, column] = (so_far[rows, :end] + sweep.later(column, end)).max(axis=1) - held
    return Rerun(**tables)


def _held_so_far(graph: Graph, starts: Ints) -> Ints:
    """[begin, layer]: held by a stage from ``begin`` up to and including a layer; before ``begin`` less than any."""
    held = np.asarray(_own_bytes(graph), dtype=np.int64)
    values = [(value, holder) for value, holder in zip(graph.values, held_from(graph), strict=True)
              if holder is not None and value.producer >= 0]  # fmt: skip
    for value, holder in values:
        held[holder] += value.bytes
    waiting = sorted(values, key=lambda each: -each[0].producer)
    table = np.full((len(starts), len(held)), NOWHERE, dtype=np.int64)
    for row, begin in enumerate(starts.tolist()):
        while waiting and waiting[-1][0].producer < begin:  # comes in from the stage before
            value, holder = waiting.pop()
            held[holder] -= value.bytes
        table[row, begin:] = np.cumsum(held[begin:])
    return table
