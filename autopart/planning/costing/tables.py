"""The facts of every possible stage of a chain, as arrays over (first boundary, last boundary).

The same figures as ``memory.stage_facts`` and ``costs.layout_costs`` give for one stage, for all stages at once:
running sums along the layers instead of going through them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.codecs import Codec, Sent, plain, sent
from autopart.planning.costing.kvcache import layer_cache_bytes
from autopart.planning.costing.memory import StageFacts, full_bytes, loss_of
from autopart.planning.costing.memorywalk import layer_needs, passes_table
from autopart.planning.costing.rerunning import held_from, rerun_table
from autopart.schema.device import Link
from autopart.schema.graph import Graph, Value

__all__ = ["MAX_BOUNDARIES", "Crossing", "choose_boundaries", "crossing_at", "facts_table", "running_seconds"]

MAX_BOUNDARIES = 200
"""more possible cuts than that are thinned out: the arcs of the integer program grow with the square"""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def choose_boundaries(graph: Graph, layer_seconds: Floats, limit: int = MAX_BOUNDARIES) -> tuple[int, ...]:
    """0, the cuts that the planner may use, and the number of layers: all legal cuts if they are few.

    Otherwise the layers are merged into ``limit - 1`` items of about equal time, each ending at the legal cut of its
    window that fewest bytes cross; a cut between items is a cut between layers, so nothing needs expanding.
    """
    num_layers = len(graph.layers)
    cuts = sorted(set(graph.legal_cuts))
    if len(cuts) + 2 <= limit:
        return (0, *cuts, num_layers)
    elapsed = np.concatenate(([0.0], np.cumsum(layer_seconds + layer_seconds.sum() * 1e-9)))
    crossing = crossing_bytes(graph)
    best: dict[int, int] = {}
    for cut in cuts:
        window = int(elapsed[cut] / elapsed[-1] * (limit - 2))
        if window not in best or crossing[cut] < crossing[best[window]]:
            best[window] = cut
    return (0, *sorted(best.values()), num_layers)


def across(graph: Graph, amounts: Sequence[int]) -> Ints:
    """At every boundary 0 .. number of layers the sum of ``amounts`` (one per value) over the values that cross it."""
    change = np.zeros(len(graph.layers) + 2, dtype=np.int64)
    for value, amount in zip(graph.values, amounts, strict=True):
        change[value.producer + 1] += amount
        change[value.consumers[-1] + 1] -= amount
    return np.cumsum(change)[:-1]


def crossing_bytes(graph: Graph, *, gradients: bool = False) -> Ints:
    """Bytes that cross every boundary: of all values, or of the gradients of the differentiable ones."""
    return across(graph, [value.bytes if value.differentiable or not gradients else 0 for value in graph.values])


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What crosses every boundary: one message per value, and one per gradient where they travel back."""

    graph: Graph
    boundaries: tuple[int, ...]
    gradients: bool
    codecs: tuple[Codec, ...]
    messages: Ints
    num_bytes: Ints
    """as it is"""

    def seconds(self, link: Link) -> Floats:
        """Of every boundary, over a link; every value by the codec that is quickest there."""
        if plain(self.codecs):
            return np.asarray(self.messages * link.latency_seconds + self.num_bytes / link.bandwidth_bytes_per_second)
        ways = [sent(value, self.graph, link, self.codecs) for value in self.graph.values]
        found = np.zeros(len(self.boundaries))
        for codec in self.codecs if Codec(name="none") in self.codecs else (Codec(name="none"), *self.codecs):
            number = [_both(value, self.gradients) * (way.codec == codec) for value, way in self._each(ways)]
            on_wire = [each * way.num_bytes for each, way in zip(number, ways, strict=True)]
            before = [each * value.bytes for each, value in zip(number, self.graph.values, strict=True)]
            messages, wire, coded = (self._across(amounts) for amounts in (number, on_wire, before))
            found += messages * (link.latency_seconds + codec.start_seconds)
            found += wire / link.bandwidth_bytes_per_second + coded / codec.bytes_per_second
        return found

    def _each(self, ways: Sequence[Sent]) -> Iterable[tuple[Value, Sent]]:
        return zip(self.graph.values, ways, strict=True)

    def _across(self, amounts: Sequence[int]) -> Ints:
        return across(self.graph, amounts)[list(self.boundaries)]


def _both(value: Value, gradients: bool) -> int:
    """Messages of a value across one boundary."""
    return 1 + (value.differentiable and gradients)


def crossing_at(
    graph: Graph, boundaries: tuple[int, ...], *, gradients: bool, codecs: tuple[Codec, ...] = ()
) -> Crossing:
    """What crosses these boundaries, with the gradients of differentiable values if wanted."""
    messages = across(graph, [_both(value, gradients) for value in graph.values])
    num_bytes = across(graph, [_both(value, gradients) * value.bytes for value in graph.values])
    return Crossing(
        graph=graph, boundaries=boundaries, gradients=gradients, codecs=codecs,
        messages=messages[list(boundaries)], num_bytes=num_bytes[list(boundaries)],
    )


def running_seconds(seconds: tuple[float, ...], boundaries: tuple[int, ...]) -> Floats:
    """Entry [a, b]: time of the layers from boundary a to boundary b; negative where b < a."""
    elapsed = np.concatenate(([0.0], np.cumsum(np.asarray(seconds, dtype=np.float64))))[list(boundaries)]
    return elapsed[None, :] - elapsed[:, None]


@dataclass(slots=True)
class _Columns:
    """Sums and maxima for stages that start at each layer and end where the sweep stands."""

    weights: Ints
    trainable: Ints
    full_trainable: Ints
    largest_trainable: Ints
    second_trainable: Ints
    largest_tied: Ints
    saved: Ints


def facts_table(graph: Graph, boundaries: tuple[int, ...], *, recompute: bool = False) -> StageFacts:
    """Stage facts as arrays [a, b] over the boundaries; only entries with a < b mean something."""
    starts = np.asarray(boundaries)
    size = len(boundaries)
    fields = tuple(_Columns.__slots__)
    tables = {name: np.zeros((size, size), dtype=np.int64) for name in fields}
    columns = _Columns(*(np.zeros(len(graph.layers) + 1, dtype=np.int64) for _ in fields))
    previous_user = [-1] * len(graph.weights)
    column_of = {boundary: column for column, boundary in enumerate(boundaries)}
    num_users = Counter(index for layer in graph.layers for index in set(layer.weights))
    for index in range(len(graph.layers)):
        _take_layer(columns, graph, index, previous_user, num_users)
        if index + 1 in column_of:
            for name in fields:
                tables[name][:, column_of[index + 1]] = getattr(columns, name)[starts]
    edges = crossing_bytes(graph)[starts]
    gradient_edges = crossing_bytes(graph, gradients=True)[starts]
    needs, loss = layer_needs(graph), loss_of(graph)
    walked = passes_table(graph, needs, boundaries)
    is_last = np.repeat((starts == len(graph.layers))[None, :], size, axis=0)
    tables["saved"] = np.maximum(tables["saved"] - _incoming_saved(graph, boundaries), 0)
    facts = StageFacts(
        **tables,
        kept=_kept(graph, boundaries, [value.saved_by for value in graph.values]),
        incoming=np.repeat(edges[:, None], size, axis=1),
        incoming_gradient=np.repeat(gradient_edges[:, None], size, axis=1),
        outgoing=np.repeat(edges[None, :], size, axis=0),
        outgoing_gradient=np.repeat(gradient_edges[None, :], size, axis=0),
        is_first=np.repeat((starts == 0)[:, None], size, axis=1),
        is_last=is_last,
        alive=walked.alive, first_pass=walked.first, later_pass=walked.later,
        loss_saved=is_last * loss.saved_bytes,
        loss_backward=is_last * loss.backward_bytes,
        cache_per_token=_between(layer_cache_bytes(graph), boundaries),
    )
    if not recompute:
        return facts
    again = rerun_table(graph, needs, boundaries)
    return replace(
        facts, saved=again.held, first_pass=again.first, later_pass=again.later,
        kept=_kept(graph, boundaries, held_from(graph)),
    )


def _between(amounts: Sequence[int], boundaries: tuple[int, ...]) -> Ints:
    """Entry [a, b]: sum of the layers from boundary a to boundary b."""
    sums = np.concatenate(([0], np.cumsum(np.asarray(amounts, dtype=np.int64))))[list(boundaries)]
    return sums[None, :] - sums[:, None]


def _take_layer(
    columns: _Columns, graph: Graph, index: int, previous_user: list[int], num_users: Mapping[int, int]
) -> None:
    """Add layer ``index`` to all stages that start at or before it; a tied weight counts once per stage."""
    layer = graph.layers[index]
    columns.saved[: index + 1] += layer.saved_bytes
    for number in sorted(set(layer.weights)):
        weight = graph.weights[number]
        new = slice(previous_user[number] + 1, index + 1)
        columns.weights[new] += weight.bytes
        if weight.trainable and not weight.is_buffer:
            columns.trainable[new] += weight.bytes
            columns.full_trainable[new] += full_bytes(weight)
            smaller = np.minimum(columns.largest_trainable[new], weight.bytes)
            np.maximum(columns.second_trainable[new], smaller, out=columns.second_trainable[new])
            np.maximum(columns.largest_trainable[new], weight.bytes, out=columns.largest_trainable[new])
            if num_users[number] > 1:
                np.maximum(columns.largest_tied[new], weight.bytes, out=columns.largest_tied[new])
        previous_user[number] = index


def _kept(graph: Graph, boundaries: tuple[int, ...], holders: Sequence[int | None]) -> Ints:
    """Entry [a, b]: bytes of the values made between boundaries a and b that cross b and that no layer there holds.

    ``holders``: of every value the layer that would.
    """
    starts = np.asarray(boundaries)
    kept = np.zeros((len(boundaries), len(boundaries)), dtype=np.int64)
    for value, holder in zip(graph.values, holders, strict=True):
        crossed = np.flatnonzero((starts > value.producer) & (starts <= value.consumers[-1]))
        if holder is not None:
            crossed = crossed[starts[crossed] <= holder]
        begun = int(np.searchsorted(starts, value.producer, side="right"))
        kept[:begun, crossed] += value.bytes
    return kept


def _incoming_saved(graph: Graph, boundaries: tuple[int, ...]) -> Ints:
    """Entry [a, b]: bytes of the values that cross boundary a and that a layer between a and b is charged for."""
    starts = np.asarray(boundaries)
    found = np.zeros((len(boundaries), len(boundaries)), dtype=np.int64)
    for value in graph.values:
        if value.saved_by is not None:
            crossed = (starts > value.producer) & (starts <= value.saved_by)
            found[np.ix_(crossed, starts > value.saved_by)] += value.bytes
    return found
