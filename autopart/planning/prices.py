"""Prices on devices: a Lagrangian lower bound, and the arcs that no good plan can contain.

With a price p[g] >= 0 on every device of group g (and q on every stage, if their number is prescribed), rows C4, C5 and
C7 of the path program go into the objective and a shortest path is left (Geoffrion 1974); r devices pay r times:

    L(p, q) = shortest path under weight_a + r_a p[g_a] + q  -  sum p[g] n[g]  -  q N     <= S(b)

1F1B's memory (row C6) is kept exactly: a node also knows how many stages follow it, its *depth*, and an arc may be
taken only where its memory holds as many micro-batches.  An arc whose best path costs more than a known target is in no
plan that beats it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.arcs import Arcs, Instance

__all__ = ["Priced", "price_arcs"]

NUM_ROUNDS = 40

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Lower bound on the sum of weights, overall and for every arc if the path has to use it."""

    bound: float
    through: Floats
    prices: Floats
    """the last ones of the search: a good start for a similar one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
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


def _network(instance: Instance, arcs: Arcs) -> _Network:
    width = instance.num_classes + 1
    source, target = arcs.first * width + arcs.before, arcs.last * width + arcs.after
    by_target = np.argsort(target, kind="stable")
    depths = 1
    most = min(instance.num_microbatches, instance.num_devices, instance.end)
    if (arcs.most_in_flight < most).any():
        depths = most
    in_flight = np.arange(1, depths + 1)
    return _Network(
        source=source, target=target, group=arcs.group, devices=arcs.width.astype(np.float64),
        closed=arcs.most_in_flight[:, None] < in_flight[None, :],
        leaving=_slices(source), by_target=by_target, entering=_slices(target[by_target]),
        num_nodes=(instance.end + 1) * width, start=instance.num_classes, first_end=instance.end * width,
    )


def _slices(keys: Ints) -> tuple[tuple[int, int, int], ...]:
    found, starts = np.unique(keys, return_index=True)
    ends = [*starts[1:].tolist(), len(keys)]
    return tuple(zip(found.tolist(), starts.tolist(), ends, strict=True))


def _to_end(network: _Network, weights: Floats) -> tuple[Floats, dict[int, tuple[Ints, bool]]]:
    """Distance to the end of every node at every depth; and of each node the arcs that attain it.

    Those arcs are by the depth of the node they lead to; the flag says that the greatest depth is followed by itself.
    """
    distance = np.full((network.num_nodes, network.depths), np.inf)
    distance[network.first_end :, 0] = 0.0
    leave: dict[int, tuple[Ints, bool]] = {}
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


def _from_start(network: _Network, weights: Floats) -> Floats:
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


def _through(network: _Network, weights: Floats, to_end: Floats) -> Floats:
    """Length of the best path through every arc."""
    deeper = np.minimum(np.arange(network.depths) + 1, network.depths - 1)
    reach = _from_start(network, weights)[network.source][:, deeper] + to_end[network.target]
    reach[network.closed] = np.inf
    return np.asarray(reach.min(axis=1) + weights)


def price_arcs(
    instance: Instance, arcs: Arcs, target: float, at_least: tuple[int, ...] | None, *,
    start: Floats | None = None, num_rounds: int = NUM_ROUNDS,
) -> Priced:
    """The best bound that a subgradient search finds, with each arc's own; ``target`` sets its step lengths."""
    prices = np.zeros(instance.num_groups) if start is None else start
    nothing = Priced(bound=np.inf, through=np.full(len(arcs), np.inf), prices=prices)
    if not len(arcs):
        return nothing
    network = _network(instance, arcs)
    most = np.asarray(instance.counts, dtype=np.float64)
    least = np.asarray(at_least or (0,) * instance.num_groups, dtype=np.float64)
    extra, step = 0.0, 1.0
    best, best_weights, paid_at_best, through = -np.inf, arcs.weight, 0.0, np.full(len(arcs), -np.inf)
    for number in range(num_rounds):
        weights = arcs.weight + prices[arcs.group] * network.devices + extra
        to_end, leave = _to_end(network, weights)
        length = float(to_end[network.start].min())
        if not np.isfinite(length):
            return nothing
        paid = float((np.where(prices > 0, most, least) * prices).sum()) + extra * (instance.num_stages or 0)
        bound = length - paid
        if number % 8 == 0:
            through = np.maximum(through, _through(network, weights, to_end) - paid)
        step = step if bound > best else step * 0.7
        if bound > best:
            best, best_weights, paid_at_best = bound, weights, paid
        used, num_stages = _used(instance, network, leave, to_end)
        slope = np.where(prices > 0, used - most, np.where(used > most, used - most, np.minimum(used - least, 0.0)))
        lack = float(num_stages) - instance.num_stages if instance.num_stages is not None else 0.0
        norm = float((slope**2).sum()) + lack**2
        goal = target if np.isfinite(target) else best + abs(best) * 0.1
        if not norm or bound >= goal:
            break
        stride = step * max(goal - bound, 1e-9 * abs(goal)) / norm
        prices = _clip(prices + stride * slope, least)
        extra += stride * lack
    to_end, _ = _to_end(network, best_weights)
    through = np.maximum(through, _through(network, best_weights, to_end) - paid_at_best)
    return Priced(bound=best * (1 - 1e-9), through=through * (1 - 1e-9), prices=prices)


def _clip(prices: Floats, least: Floats) -> Floats:
    """Prices may be negative (a reward) only for groups that have to be used."""
    return np.where(least > 0, prices, np.maximum(prices, 0.0))


def _used(
    instance: Instance, network: _Network, leave: dict[int, tuple[Ints, bool]], to_end: Floats
) -> tuple[Floats, int]:
    """Devices per group on the shortest path, and its stages."""
    used, num_stages = np.zeros(instance.num_groups), 0
    node, depth = network.start, int(to_end[network.start].argmin())
    while node < network.first_end:
        choices, stays = leave[node]
        depth = depth if depth == network.depths - 1 and stays else depth - 1
        arc = int(choices[depth])
        node = int(network.target[arc])
        used[network.group[arc]] += network.devices[arc]
        num_stages += 1
    return used, num_stages
