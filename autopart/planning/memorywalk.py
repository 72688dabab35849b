"""The most that a stage holds while one micro-batch goes through its layers, beside what is saved of all of them.

Backward frees what forward saved while it makes the weights' gradients, so neither their sum nor the largest layer's
need says what is alive at once.  With C the bytes saved up to and including a layer, B what its backward needs and g
the gradients that the layers after it have made, the peak of a micro-batch is the largest C + B + g along the layers.
Of a weight that several layers use, autograd holds the sum of gradients until the first of them is through.

Layers' needs do not depend on where the stage begins: for all stages that end at one boundary, one sweep suffices.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from autopart.schema.graph import Graph, Layer

__all__ = ["LayerNeeds", "Passes", "layer_needs", "passes", "passes_table"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNeeds:
    """Bytes along the layers, of one micro-batch."""

    alive: Ints
    """in inference, with the values that pass by"""
    first: Ints
    """in backward beyond what is saved, while no weight has a gradient; with gradients of values that pass by"""
    later: Ints
    """the same once all weights have theirs"""
    saved: Ints
    """running sum of what the layers save, from 0 before the first"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Of stages (integers, or arrays over their ends): beyond all that the stage saves of one micro-batch."""

    first: object
    """in the first micro-batch's backward, the gradients made so far included"""
    later: object
    """in a later one's, beside all the weights' gradients"""
    alive: object
    """in inference, in all"""
    replay: object
    """of the layer that needs most, what it saves and its backward's need together"""


def layer_needs(graph: Graph) -> LayerNeeds:
    """The needs of every layer; of those whose backward was not run, twice their forward's."""
    passing, gradients = np.zeros((2, len(graph.layers) + 1), dtype=np.int64)
    for value in graph.values:
        inside = slice(value.producer + 1, value.consumers[-1])
        passing[inside] += value.bytes
        for consumer in value.consumers[:-1]:
            passing[consumer] -= value.bytes
        if value.differentiable:
            gradients[inside] += value.bytes
    layers = graph.layers
    return LayerNeeds(
        alive=np.asarray([layer.peak_bytes for layer in layers]) + passing[:-1],
        first=np.asarray([_first(graph, layer) for layer in layers]) + gradients[:-1],
        later=np.asarray([_later(layer) for layer in layers]) + gradients[:-1],
        saved=np.concatenate(([0], np.cumsum([layer.saved_bytes for layer in layers]))),
    )


def _later(layer: Layer) -> int:
    return layer.backward_bytes or 2 * layer.peak_bytes


def _first(graph: Graph, layer: Layer) -> int:
    if layer.first_backward_bytes:
        return layer.first_backward_bytes
    return _later(layer) + sum(graph.weights[index].bytes for index in _trained(graph, layer))


def _trained(graph: Graph, layer: Layer) -> set[int]:
    return {
        index for index in layer.weights if graph.weights[index].trainable and not graph.weights[index].is_buffer
    }


def passes(graph: Graph, begin: int, end: int) -> Passes:
    """Of layers begin .. end - 1, by going through them."""
    layers = graph.layers[begin:end]
    gradients, passing, made, held = (_Running(begin, end) for _ in range(4))
    for value in graph.values:
        inside = (value.producer + 1, value.consumers[-1])
        if max(inside[0], begin) >= min(inside[1], end):
            continue
        if value.differentiable:
            gradients.add(inside, value.bytes)
        passing.add(inside, value.bytes)
        for consumer in value.consumers[:-1]:
            passing.add((consumer, consumer + 1), -value.bytes)
    used: dict[int, list[int]] = defaultdict(list)
    for index, layer in enumerate(layers, start=begin):
        for weight in _trained(graph, layer):
            used[weight].append(index)
    for weight, users in used.items():
        made.add((begin, users[-1]), graph.weights[weight].bytes)
        held.add((users[0], users[-1]), graph.weights[weight].bytes)
    below = -sum(layer.saved_bytes for layer in layers)
    first = later = alive = replay = 0
    walk = zip(layers, gradients.sums(), passing.sums(), made.sums(), held.sums(), strict=True)
    for layer, passed_back, passed_by, so_far, not_yet in walk:
        below += layer.saved_bytes
        first = max(first, below + passed_back + _first(graph, layer) + so_far)
        later = max(later, below + passed_back + _later(layer) + not_yet)
        replay = max(replay, layer.saved_bytes + passed_back + _later(layer))
        alive = max(alive, layer.peak_bytes + passed_by)
    return Passes(first=first, later=later, alive=alive, replay=replay)


class _Running:
    """Bytes at every layer from ``begin`` to before ``end``, of things that are there from one layer to another."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin, self._changes = begin, [0] * (end - begin + 1)

    def add(self, layers: tuple[int, int], num_bytes: int) -> None:
        """Something is there from the first of these layers to before the second."""
        here, last = max(layers[0] - self._begin, 0), min(layers[1] - self._begin, len(self._changes) - 1)
        if here < last:
            self._changes[here] += num_bytes
            self._changes[last] -= num_bytes

    def sums(self) -> list[int]:
        """At every layer."""
        return list(accumulate(self._changes[:-1]))


def passes_table(graph: Graph, needs: LayerNeeds, boundaries: tuple[int, ...]) -> Passes:
    """Of the stages between all pairs of boundaries, as arrays [begin, end]; entries with begin < end count."""
    starts, size = np.asarray(boundaries), len(boundaries)
    replay = np.diff(needs.saved) + needs.later
    tables = {name: np.zeros((size, size), dtype=np.int64) for name in ("first", "later", "alive", "replay")}
    sweep = _Sweep(graph, needs, starts)
    for column, end in enumerate(boundaries[1:], start=1):
        sweep.take(boundaries[column - 1], end)
        rows, before = slice(0, column), starts[:column]
        tables["first"][rows, column] = _most_from(sweep.first[:end])[before] - needs.saved[end]
        tables["later"][rows, column] = sweep.most_later(column, end) - needs.saved[end]
        tables["alive"][rows, column] = _most_from(needs.alive[:end])[before]
        tables["replay"][rows, column] = _most_from(replay[:end])[before]
    return Passes(**tables)


def _most_from(amounts: Ints) -> Ints:
    """Of every entry and those after it the largest."""
    return np.maximum.accumulate(amounts[::-1])[::-1]


class _Sweep:
    """What is alive at every layer, for stages that end where the sweep stands."""

    def __init__(self, graph: Graph, needs: LayerNeeds, starts: Ints) -> None:
        self.first = needs.saved[1:] + needs.first
        self._later = needs.saved[1:] + needs.later
        self._graph, self._starts = graph, starts
        self._users: dict[int, list[int]] = defaultdict(list)
        self._held: Ints | None = None
        """[begin, layer]: gradients that autograd holds back; None as long as no weight has two users"""

    def take(self, begin: int, end: int) -> None:
        """Goes on from one boundary to the next."""
        for index in range(begin, end):
            for weight in sorted(_trained(self._graph, self._graph.layers[index])):
                users, num_bytes = self._users[weight], self._graph.weights[weight].bytes
                self.first[users[-1] if users else 0 : index] += num_bytes
                if users:
                    self._hold(users, index, num_bytes)
                users.append(index)

    def _hold(self, users: list[int], index: int, num_bytes: int) -> None:
        """From the last user on, for stages that begin at or before it, all layers up to ``index``."""
        if self._held is None:
            self._held = np.zeros((len(self._starts), len(self._later)), dtype=np.int64)
        self._held[self._starts <= users[-1], users[-1] : index] += num_bytes

    def most_later(self, column: int, end: int) -> Ints:
        """For stages that begin at each boundary before ``column``."""
        if self._held is None:
            return _most_from(self._later[:end])[self._starts[:column]]
        alive = self._later[:end] + self._held[:column, :end]
        return np.asarray([_most(row, start) for row, start in zip(alive, self._starts[:column], strict=True)])


def _most(row: Ints, start: int) -> int:
    return int(row[start:].max())
