"""The most that a stage holds while one micro-batch goes through its layers, beside what is saved of all of them.

Backward frees what forward saved while it makes the weights' gradients, so neither their sum nor the largest layer's
need says what is alive at once.  With C the bytes saved up to and including a layer, B what its backward needs and g
the gradients that the layers after it have made, the peak of a micro-batch is the largest C + B + g along the layers.
Of a weight that several layers use, autograd holds the sum of gradients until the first of them is through, and makes a
new tensor of every sum.

Layers' needs do not depend on where the stage begins: for all stages that end at one boundary, one sweep suffices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from autopart.schema.graph import Graph, Layer

__all__ = ["LayerNeeds", "Passes", "Sweep", "layer_needs", "passes", "passes_table"]

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


def passes(
    graph: Graph, begin: int, end: int, *, saved: Sequence[int] | None = None, extra: Sequence[int] | None = None
) -> Passes:
    """Of layers begin .. end - 1, by going through them.

    Args:
        graph: all layers.
        begin: the first one.
        end: one past the last.
        saved: of each what is saved from its forward to its backward; None: all that it saves.
        extra: of each what it needs in its backward beside; None: nothing.
    """
    layers = graph.layers[begin:end]
    saved = [layer.saved_bytes for layer in layers] if saved is None else saved
    extra = [0] * len(layers) if extra is None else extra
    gradients, passing = _going_by(graph, begin, end)
    made, held = _made(graph, begin, end)
    below = -sum(saved)
    first, later, alive = [], [], []
    walk = zip(layers, saved, extra, gradients, passing, made, held, strict=True)
    for layer, kept, beside, passed_back, passed_by, so_far, not_yet in walk:
        below += kept
        first.append(below + beside + passed_back + _first(graph, layer) + so_far)
        later.append(below + beside + passed_back + _later(layer) + not_yet)
        alive.append(layer.peak_bytes + passed_by)
    return Passes(first=max(first), later=max(later), alive=max(alive))


def _going_by(graph: Graph, begin: int, end: int) -> tuple[list[int], list[int]]:
    """Of every layer the gradients of values that go by it, and the values."""
    gradients, passing = _Running(begin, end), _Running(begin, end)
    for value in graph.values:
        inside = (value.producer + 1, value.consumers[-1])
        if max(inside[0], begin) >= min(inside[1], end):
            continue
        if value.differentiable:
            gradients.add(inside, value.bytes)
        passing.add(inside, value.bytes)
        for consumer in value.consumers[:-1]:
            passing.add((consumer, consumer + 1), -value.bytes)
    return gradients.sums(), passing.sums()


def _made(graph: Graph, begin: int, end: int) -> tuple[list[int], list[int]]:
    """Weights' gradients that are there when a layer's backward runs: in the first pass, and held back in later ones.

    Of a weight of several layers autograd holds one gradient back and adds the others to it out of place.
    """
    used: dict[int, list[int]] = defaultdict(list)
    for index, layer in enumerate(graph.layers[begin:end], start=begin):
        for weight in _trained(graph, layer):
            used[weight].append(index)
    made, held = _Running(begin, end), _Running(begin, end)
    for weight, users in used.items():
        num_bytes = graph.weights[weight].bytes
        made.add((begin, users[-1]), num_bytes)
        held.add((users[0], users[-1]), num_bytes)
        if len(users) > 1:
            made.add((users[0], users[0] + 1), num_bytes)
            held.add((users[0], users[0] + 1), num_bytes)
    return made.sums(), held.sums()


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
    tables = {name: np.zeros((size, size), dtype=np.int64) for name in ("first", "later", "alive")}
    sweep = Sweep(graph, needs, starts)
    for column, end in enumerate(boundaries[1:], start=1):
        sweep.take(boundaries[column - 1], end)
        rows, before = slice(0, column), starts[:column]
        tables["first"][rows, column] = _most(sweep.first(column, end), before) - needs.saved[end]
        tables["later"][rows, column] = _most(sweep.later(column, end), before) - needs.saved[end]
        tables["alive"][rows, column] = _most_from(needs.alive[:end])[before]
    return Passes(**tables)


def _most_from(amounts: Ints) -> Ints:
    """Of every entry and those after it the largest."""
    return np.maximum.accumulate(amounts[::-1])[::-1]


def _most(alive: Ints, starts: Ints) -> Ints:
    """Of a row for every start, or of one for all, the largest from there on."""
    if len(alive) == 1:
        return _most_from(alive[0])[starts]
    return np.asarray([row[start:].max() for row, start in zip(alive, starts, strict=True)])


class Sweep:
    """What is alive at every layer, for stages that end where the sweep stands."""

    def __init__(self, graph: Graph, needs: LayerNeeds, starts: Ints) -> None:
        self._first = needs.saved[1:] + needs.first
        self._later = needs.saved[1:] + needs.later
        self._graph, self._starts = graph, starts
        self._users: dict[int, list[int]] = defaultdict(list)
        self._summed: Ints | None = None
        """[begin, layer]: where the gradients of several layers are added up; None: no weight has two users yet"""
        self._held: Ints | None = None
        """the same, with the gradients that autograd holds back"""

    def take(self, begin: int, end: int) -> None:
        """Goes on from one boundary to the next."""
        for index in range(begin, end):
            for weight in sorted(_trained(self._graph, self._graph.layers[index])):
                users, num_bytes = self._users[weight], self._graph.weights[weight].bytes
                self._first[users[-1] if users else 0 : index] += num_bytes
                if users:
                    self._hold(users, index, num_bytes)
                users.append(index)

    def _hold(self, users: list[int], index: int, num_bytes: int) -> None:
        """From the last user on, for stages that begin at or before it, all layers up to ``index``.

        Of those that begin after the last user but one, the last one is the first that they have.
        """
        if self._held is None or self._summed is None:
            self._held, self._summed = np.zeros((2, len(self._starts), len(self._later)), dtype=np.int64)
        within = self._starts <= users[-1]
        self._held[within, users[-1] : index] += num_bytes
        newly = within & (self._starts > (users[-2] if len(users) > 1 else -1))
        self._held[newly, users[-1]] += num_bytes
        self._summed[newly, users[-1]] += num_bytes

    def first(self, column: int, end: int) -> Ints:
        """In a first pass, [begin, layer] for stages that begin before boundary ``column``; or one row for all."""
        alive = self._first[:end]
        return alive[None, :] if self._summed is None else alive + self._summed[:column, :end]

    def later(self, column: int, end: int) -> Ints:
        """The same in a later pass."""
        alive = self._later[:end]
        return alive[None, :] if self._held is None else alive + self._held[:column, :end]
