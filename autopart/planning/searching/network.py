"""Shortest paths over the arcs of an instance: the subproblem of every relaxation.

1F1B's memory (row C6) is kept exactly: a node also knows how many stages follow it, its *depth*, and an arc may be
taken only where its memory holds as many micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.updates import latest_sums, least_hidden

__all__ = ["Lengths", "Network", "from_start", "lengths_of", "network_of", "shortest_path", "through"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """The nodes at one boundary, and the arcs that leave them."""

    low: int
    high: int
    """one past the last arc"""
    nodes: Ints
    starts: Ints
    """the first arc of every node, counted from ``low``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Arcs between nodes (boundary, link class), by the node they leave and by the node they enter."""

    source: Ints
    target: Ints
    group: Ints
    devices: Floats
    update: Floats
    saves: Floats
    is_late: bool
    """whether an optimizer behind the first stage may be the last to end"""
    hidden: Floats
    """of every node: optimizers behind it that add no more are never the last to end"""
    closed: npt.NDArray[np.bool_]
    """[arc, depth]: its memory does not hold so many stages behind it"""
    leaving: tuple[Leaving, ...]
    """boundaries ascending"""
    by_target: Ints
    """arcs in the order of the nodes they enter"""
    entering: tuple[tuple[int, int, int], ...]
    num_nodes: int
    start: int
    first_end: int
    """nodes from here on are at the end"""

    @property
    def depths(self) -> int:
        """Depths told apart; the last one stands for all greater ones."""
        return int(self.closed.shape[1])


def network_of(instance: Instance, arcs: Arcs) -> Network:
    """The network of some of an instance's arcs."""
    width = instance.num_classes + 1
    source, target = arcs.first * width + arcs.before, arcs.last * width + arcs.after
    by_target = np.argsort(target, kind="stable")
    depths = 1
    most = min(instance.num_microbatches, instance.num_devices, instance.end)
    if (arcs.most_in_flight < most).any():
        depths = most
    in_flight = np.arange(1, depths + 1)
    return Network(
        source=source, target=target, group=arcs.group, devices=arcs.width.astype(np.float64),
        update=arcs.update, saves=arcs.saves, is_late=arcs.are_late,
        hidden=np.repeat(np.append(least_hidden(arcs), np.zeros(instance.end))[: instance.end + 1], width),
        closed=arcs.most_in_flight[:, None] < in_flight[None, :],
        leaving=_leaving(source, width), by_target=by_target, entering=_slices(target[by_target]),
        num_nodes=(instance.end + 1) * width, start=instance.num_classes, first_end=instance.end * width,
    )


def _leaving(source: Ints, width: int) -> tuple[Leaving, ...]:
    nodes, starts = np.unique(source, return_index=True)
    boundaries, firsts = np.unique(nodes // width, return_index=True)
    ends = [*starts[firsts[1:]].tolist(), len(source)]
    parts = zip(np.split(nodes, firsts[1:]), np.split(starts, firsts[1:]), ends, strict=True) if len(boundaries) else ()
    return tuple(Leaving(low=int(at[0]), high=end, nodes=some, starts=at - at[0]) for some, at, end in parts)


def _slices(keys: Ints) -> tuple[tuple[int, int, int], ...]:
    found, starts = np.unique(keys, return_index=True)
    ends = [*starts[1:].tolist(), len(keys)]
    return tuple(zip(found.tolist(), starts.tolist(), ends, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Shortest paths at some weights: lengths have in them what the optimizer that ends last adds (``updates``)."""

    weights: Floats
    distance: Floats
    """to the end of every node at every depth, whatever optimizers add"""
    latest: Floats | None
    """the same with what the optimizers from there on add; None where no optimizer behind the first stage is late"""

    def least(self, network: Network) -> float:
        """No path from the source is shorter; inf: there is none."""
        return float((self.distance if self.latest is None else self.latest)[network.start].min())


def lengths_of(network: Network, weights: Floats) -> Lengths:
    """The shortest paths.

    With late optimizers what follows a node has two lengths, of its weights and with its optimizers; the least of each
    is taken by itself, which is a lower bound:

        latest[n] = min over arcs a = (n, m) of  max(weight_a + update_a + distance[m], weight_a - saves_a + latest[m])
    """
    distance = np.full((network.num_nodes, network.depths), np.inf)
    distance[network.first_end :, 0] = 0.0
    latest = distance.copy() if network.is_late else None
    lengths = Lengths(weights=weights, distance=distance, latest=latest)
    matters = np.zeros(network.num_nodes, dtype=np.bool_)
    for each in reversed(network.leaving):
        some = slice(each.low, each.high)
        _settle(distance, each, _totals(network, lengths, some))
        if latest is None:
            continue
        if not (matters[network.target[some]].any() or (network.update[some] > 0).any()):
            latest[each.nodes] = distance[each.nodes]
            continue
        _settle(latest, each, _latest_totals(network, lengths, some))
        own, more = distance[each.nodes], latest[each.nodes]
        with np.errstate(invalid="ignore"):  # inf - inf: no path
            known = (more - own > network.hidden[each.nodes, None]).any(axis=1)
        latest[each.nodes], matters[each.nodes] = np.where(known[:, None], more, own), known
    return lengths


def _totals(network: Network, lengths: Lengths, some: slice) -> Floats:
    """Lengths over some arcs, [arc, depth of the node they lead to]."""
    totals = lengths.distance[network.target[some]]
    totals += lengths.weights[some, None]
    totals[network.closed[some]] = np.inf
    return totals


def _latest_totals(network: Network, lengths: Lengths, some: slice) -> Floats:
    """The same with what optimizers add."""
    assert lengths.latest is not None, "there are late optimizers"
    target = network.target[some]
    weight, update, saves = (each[some, None] for each in (lengths.weights, network.update, network.saves))
    totals = latest_sums(weight, update, saves, lengths.distance[target], lengths.latest[target])
    totals[network.closed[some]] = np.inf
    return totals


def _settle(distance: Floats, each: Leaving, totals: Floats) -> None:
    """Take the least of the totals of the arcs that leave every node; the greatest depth may be followed by itself."""
    least = np.minimum.reduceat(totals, each.starts, axis=0)
    own = np.full_like(least, np.inf)
    own[:, 1:] = least[:, :-1]
    own[:, -1] = np.minimum(own[:, -1], least[:, -1])
    distance[each.nodes] = own


def from_start(network: Network, weights: Floats) -> Floats:
    """Distance from the source of every node, if so many stages follow it."""
    distance = np.full((network.num_nodes, network.depths), np.inf)
    distance[network.start] = 0.0
    deeper = np.minimum(np.arange(network.depths) + 1, network.depths - 1)
    for node, low, high in network.entering:
        arcs = network.by_target[low:high]
        totals = weights[arcs, None] + distance[network.source[arcs]][:, deeper]
        totals[network.closed[arcs]] = np.inf
        distance[node] = totals.min(axis=0)
    return distance


def through(network: Network, lengths: Lengths) -> Floats:
    """Length of the best path through every arc, or less."""
    deeper = np.minimum(np.arange(network.depths) + 1, network.depths - 1)
    weights, behind = lengths.weights, lengths.distance[network.target]
    reach = from_start(network, weights)[network.source][:, deeper] + weights[:, None] + behind
    if lengths.latest is not None:  # the last to end is its own optimizer or one behind
        weight, update, saves = (each[:, None] for each in (weights, network.update, network.saves))
        ends = latest_sums(weight, update, saves, behind, lengths.latest[network.target])
        before = from_start(network, weights - network.saves)
        reach = np.maximum(reach, before[network.source][:, deeper] + ends)
    reach[network.closed] = np.inf
    return np.asarray(reach.min(axis=1))


def shortest_path(network: Network, lengths: Lengths) -> list[int]:
    """The arcs of the shortest path from the source, in order; with late optimizers of one that should be as short."""
    path: list[int] = []
    is_late, deepest = lengths.latest is not None, network.depths - 1
    ends = lengths.distance if lengths.latest is None else lengths.latest
    node, depth = network.start, int(ends[network.start].argmin())
    while node < network.first_end:
        some = slice(*np.searchsorted(network.source, [node, node + 1]).tolist())
        totals = _latest_totals(network, lengths, some) if is_late else _totals(network, lengths, some)
        before = {depth - 1, depth} if depth == deepest else {depth - 1}
        before = {each for each in before if each >= 0}
        depth = min(sorted(before), key=lambda each: float(totals[:, each].min()))
        arc = some.start + int(totals[:, depth].argmin())
        node = int(network.target[arc])
        is_late = is_late and not _ends_last(network, lengths, arc, depth)
        path.append(arc)
    return path


def _ends_last(network: Network, lengths: Lengths, arc: int, depth: int) -> bool:
    """Whether nothing behind an arc ends later than its own optimizer, or it does not matter."""
    assert lengths.latest is not None, "there are late optimizers"
    at = int(network.target[arc]), depth
    return bool(network.update[arc] + lengths.distance[at] >= lengths.latest[at] - network.saves[arc])
