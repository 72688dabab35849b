"""Shortest paths over the arcs of an instance: the subproblem of every relaxation.

1F1B's memory (row C6) is kept exactly: a node also knows how many stages follow it, its *depth*, and an arc may be
taken only where its memory holds as many micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.instance import Arcs, Instance

__all__ = ["Network", "Steps", "network_of", "shortest_path", "through", "to_end"]

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
        closed=arcs.most_in_flight[:, None] < in_flight[None, :],
        leaving=_slices(source), by_target=by_target, entering=_slices(target[by_target]),
        num_nodes=(instance.end + 1) * width, start=instance.num_classes, first_end=instance.end * width,
    )


def _slices(keys: Ints) -> tuple[tuple[int, int, int], ...]:
    found, starts = np.unique(keys, return_index=True)
    ends = [*starts[1:].tolist(), len(keys)]
    return tuple(zip(found.tolist(), starts.tolist(), ends, strict=True))


def to_end(network: Network, weights: Floats) -> tuple[Floats, Steps]:
    """Distance to the end of every node at every depth; and of each node the arcs that attain it."""
    distance = np.full((network.num_nodes, network.depths), np.inf)
    distance[network.first_end :, 0] = 0.0
    leave: Steps = {}
    for node, low, high in reversed(network.leaving):
        totals = weights[low:high, None] + distance[network.target[low:high]]
        totals[network.closed[low:high]] = np.inf
        arcs = totals.argmin(axis=0)
        least = totals[arcs, np.arange(network.depths)]
        stays = network.depths == 1 or least[-1] < least[-2]
        distance[node, 1:] = least[:-1]
        if stays:
            distance[node, -1] = least[-1]
        leave[node] = (low + arcs, bool(stays))
    return distance, leave


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


def through(network: Network, weights: Floats, distance: Floats) -> Floats:
    """Length of the best path through every arc."""
    deeper = np.minimum(np.arange(network.depths) + 1, network.depths - 1)
    reach = _from_start(network, weights)[network.source][:, deeper] + distance[network.target]
    reach[network.closed] = np.inf
    return np.asarray(reach.min(axis=1) + weights)


def shortest_path(network: Network, distance: Floats, leave: Steps) -> list[int]:
    """The arcs of the shortest path from the source, in order."""
    path = []
    node, depth = network.start, int(distance[network.start].argmin())
    while node < network.first_end:
        choices, stays = leave[node]
        depth = depth if depth == network.depths - 1 and stays else depth - 1
        path.append(int(choices[depth]))
        node = int(network.target[path[-1]])
    return path
