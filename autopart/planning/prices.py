"""Prices on devices: a Lagrangian lower bound, and the arcs that no good plan can contain.

With a price p[g] >= 0 on every device of group g (and q on every stage, if their number is prescribed), rows C4, C5 and
C7 of the path program go into the objective and a shortest path is left (Geoffrion 1974):

    L(p, q) = shortest path under weight_a + p[g_a] + q  -  sum p[g] n[g]  -  q N     <= S(b)

An arc whose best path costs more than a known target is in no plan that beats it.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nodes:
    """Arcs by node (boundary, group before), ascending, as slices; and the node each arc leads to."""

    keys: Ints
    starts: Ints
    source: Ints
    target: Ints


def _nodes(instance: Instance, arcs: Arcs) -> _Nodes:
    width = instance.num_groups + 1
    source = arcs.first * width + arcs.before
    keys, starts = np.unique(source, return_index=True)
    return _Nodes(keys=keys, starts=starts, source=source, target=arcs.last * width + arcs.group)


def _to_end(instance: Instance, nodes: _Nodes, weights: Floats) -> tuple[Floats, dict[int, int]]:
    """Distance of every node to the end, and the arc each node leaves by."""
    width = instance.num_groups + 1
    distance = np.full((instance.end + 1) * width, np.inf)
    distance[instance.end * width :] = 0.0
    leave: dict[int, int] = {}
    ends = [*nodes.starts[1:].tolist(), len(weights)]
    for key, low, high in zip(nodes.keys[::-1].tolist(), nodes.starts[::-1].tolist(), ends[::-1], strict=True):
        totals = weights[low:high] + distance[nodes.target[low:high]]
        arc = int(totals.argmin())
        distance[key], leave[key] = totals[arc], low + arc
    return distance, leave


def _from_source(instance: Instance, nodes: _Nodes, weights: Floats) -> Floats:
    """Distance of every node from the source."""
    distance = np.full((instance.end + 1) * (instance.num_groups + 1), np.inf)
    distance[instance.num_groups] = 0.0
    ends = [*nodes.starts[1:].tolist(), len(weights)]
    for key, low, high in zip(nodes.keys.tolist(), nodes.starts.tolist(), ends, strict=True):
        np.minimum.at(distance, nodes.target[low:high], distance[key] + weights[low:high])
    return distance


def price_arcs(instance: Instance, arcs: Arcs, target: float, at_least: tuple[int, ...] | None) -> Priced:
    """The best bound that a subgradient search finds, with each arc's own; ``target`` sets its step lengths."""
    nothing = Priced(bound=np.inf, through=np.full(len(arcs), np.inf))
    if not len(arcs):
        return nothing
    nodes = _nodes(instance, arcs)
    most = np.asarray(instance.counts, dtype=np.float64)
    least = np.asarray(at_least or (0,) * instance.num_groups, dtype=np.float64)
    prices, extra, step = np.zeros(instance.num_groups), 0.0, 1.0
    best, through = -np.inf, np.full(len(arcs), -np.inf)
    for _ in range(NUM_ROUNDS):
        weights = arcs.weight + prices[arcs.group] + extra
        distance, leave = _to_end(instance, nodes, weights)
        if not np.isfinite(distance[instance.num_groups]):
            return nothing
        paid = float((np.where(prices > 0, most, least) * prices).sum()) + extra * (instance.num_stages or 0)
        bound = float(distance[instance.num_groups]) - paid
        reach = _from_source(instance, nodes, weights)[nodes.source] + weights + distance[nodes.target] - paid
        through = np.maximum(through, reach)
        step = step if bound > best else step * 0.7
        best = max(best, bound)
        used = _used(instance, nodes, leave)
        slope = np.where(prices > 0, used - most, np.where(used > most, used - most, np.minimum(used - least, 0.0)))
        lack = float(used.sum()) - instance.num_stages if instance.num_stages is not None else 0.0
        norm = float((slope**2).sum()) + lack**2
        goal = target if np.isfinite(target) else best + abs(best) * 0.1
        if not norm or bound >= goal:
            break
        length = step * max(goal - bound, 1e-9 * abs(goal)) / norm
        prices = _clip(prices + length * slope, least)
        extra += length * lack
    return Priced(bound=best * (1 - 1e-9), through=through * (1 - 1e-9))


def _clip(prices: Floats, least: Floats) -> Floats:
    """Prices may be negative (a reward) only for groups that have to be used."""
    return np.where(least > 0, prices, np.maximum(prices, 0.0))


def _used(instance: Instance, nodes: _Nodes, leave: dict[int, int]) -> Floats:
    """Devices per group on the shortest path."""
    width = instance.num_groups + 1
    used = np.zeros(instance.num_groups)
    key = instance.num_groups
    while key // width != instance.end:
        key = int(nodes.target[leave[key]])
        used[key % width] += 1
    return used
