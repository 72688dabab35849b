"""Shortest paths over the arcs of an instance: the subproblem of every relaxation.

1F1B's memory (row C6) is kept exactly: a node also knows how many stages follow it, its *depth*, and an arc may be
taken only where its memory holds as many micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.updates import least_hidden

__all__ = ["Lengths", "Network", "Steps", "lengths_of", "network_of", "shortest_path", "through"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Steps = dict[int, tuple[Ints, bool]]
"""of every node the arcs that attain its distance, by the depth of the node they lead to; the flag says that the
greatest depth is followed by itself"""


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
    leaving: tuple[tuple[int, int, int], ...]
    """(node, first arc, one past the last), nodes ascending"""
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
        leaving=_slices(source), by_target=by_target, entering=_slices(target[by_target]),
        num_nodes=(instance.end + 1) * width, start=instance.num_classes, first_end=instance.end * width,
    )


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
    leave: Steps
    latest: Floats | None
    """the same with what the optimizers from there on add; None where no optimizer behind the first stage is late"""
    leave_latest: Steps

    def least(self, network: Network) -> float:
        """No path from the source is shorter; inf: there is none."""
        return float((self.distance if self.latest is None else self.latest)[network.start].min())


def lengths_of(network: Network, weights: Floats) -> Lengths:
    """The shortest paths.

    With late optimizers what follows a node has two lengths, of its weights and with its optimizers; the least of each
    is taken by itself, which is a lower bound:

        latest[n] = min over arcs a = (n, m) of  max(weight_a + update_a + distance[m], weight_a - saves_a + latest[m])
    """
    distance, leave = _to_end(network, weights)
    if not network.is_late:
        return Lengths(weights=weights, distance=distance, leave=leave, latest=None, leave_latest={})
    latest, steps = distance.copy(), dict(leave)
    own, rest = weights + network.update, weights - network.saves
    matters = np.zeros(network.num_nodes, dtype=np.bool_)
    for node, low, high in reversed(network.leaving):
        target = network.target[low:high]
        if not (matters[target].any() or (network.update[low:high] > 0).any()):
            continue
        totals = np.maximum(own[low:high, None] + distance[target], rest[low:high, None] + latest[target])
        _leave(network, latest, steps, (node, low, high), totals)
        with np.errstate(invalid="ignore"):  # inf - inf: no path
            matters[node] = bool((latest[node] - distance[node] > network.hidden[node]).any())
        if not matters[node]:
            latest[node], steps[node] = distance[node], leave[node]
    return Lengths(weights=weights, distance=distance, leave=leave, latest=latest, leave_latest=steps)


def _to_end(network: Network, weights: Floats) -> tuple[Floats, Steps]:
    """Distance to the end of every node at every depth; and of each node the arcs that attain it."""
    distance = np.full((network.num_nodes, network.depths), np.inf)
    distance[network.first_end :, 0] = 0.0
    leave: Steps = {}
    for node, low, high in reversed(network.leaving):
        totals = weights[low:high, None] + distance[network.target[low:high]]
        _leave(network, distance, leave, (node, low, high), totals)
    return distance, leave


def _leave(
    network: Network, distance: Floats, leave: Steps, some: tuple[int, int, int], totals: Floats
) -> None:
    """Take the least of the totals of the arcs that leave a node, [arc, depth of the node they lead to]."""
    node, low, high = some
    totals[network.closed[low:high]] = np.inf
    arcs = totals.argmin(axis=0)
    least = totals[arcs, np.arange(network.depths)]
    stays = network.depths == 1 or least[-1] < least[-2]
    distance[node, 1:] = least[:-1]
    if stays:
        distance[node, -1] = least[-1]
    leave[node] = (low + arcs, bool(stays))


def _from_start(network: Network, weights: Floats) -> Floats:
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
    reach = _from_start(network, weights)[network.source][:, deeper] + weights[:, None] + behind
    if lengths.latest is not None:  # the last to end is its own optimizer or one behind
        own, rest = weights + network.update, weights - network.saves
        ends = np.maximum(own[:, None] + behind, rest[:, None] + lengths.latest[network.target])
        reach = np.maximum(reach, _from_start(network, rest)[network.source][:, deeper] + ends)
    reach[network.closed] = np.inf
    return np.asarray(reach.min(axis=1))


def shortest_path(network: Network, lengths: Lengths) -> list[int]:
    """The arcs of the shortest path from the source, in order; with late optimizers of one that should be as short."""
    path: list[int] = []
    latest = lengths.latest
    node, depth = network.start, int((lengths.distance if latest is None else latest)[network.start].argmin())
    while node < network.first_end:
        choices, stays = (lengths.leave if latest is None else lengths.leave_latest)[node]
        depth = depth if depth == network.depths - 1 and stays else depth - 1
        arc = int(choices[depth])
        node = int(network.target[arc])
        if latest is not None and (
            network.update[arc] + lengths.distance[node, depth] >= latest[node, depth] - network.saves[arc]
        ):
            latest = None  # nothing behind it ends later
        path.append(arc)
    return path
