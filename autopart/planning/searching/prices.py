"""Prices on devices: a Lagrangian lower bound, and the arcs that no good plan can contain.

With a price p[g] >= 0 on every device of group g (and q on every stage, if their number is prescribed), rows C4, C5 and
C7 of the path program go into the objective and a shortest path is left (Geoffrion 1974); r devices pay r times:

    L(p, q) = shortest path under weight_a + r_a p[g_a] + q  -  sum p[g] n[g]  -  q N     <= S(b)

A budget (C9) is one more row, of devices in units of the mean rent: the price of a device has a part for its rent.

1F1B's memory (row C6) is kept exactly (see ``network``).  An arc whose best path costs more than a known target is in
no plan that beats it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.network import lengths_of, network_of, shortest_path, through
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Priced", "price_arcs"]

NUM_ROUNDS = 40

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Lower bound on the sum of weights, overall and for every arc if the path has to use it."""

    bound: float
    through: Floats


def price_arcs(
    instance: Instance, arcs: Arcs, target: float, at_least: tuple[int, ...] | None, *,
    num_rounds: int = NUM_ROUNDS, out_of_time: IsOver = never,
) -> Priced:
    """The best bound that a subgradient search finds, with each arc's own; ``target`` sets its step lengths."""
    nothing = Priced(bound=np.inf, through=np.full(len(arcs), np.inf))
    if not len(arcs):
        return nothing
    network = network_of(instance, arcs)
    amounts, most = _rows(instance)
    least = np.zeros(len(most))
    least[: instance.num_groups] = at_least or 0.0
    prices, extra, step = np.zeros(len(most)), 0.0, 1.0
    best, best_weights, paid_at_best, lengths = -np.inf, arcs.weight, 0.0, np.full(len(arcs), -np.inf)
    for number in range(num_rounds):
        if number and out_of_time():
            break
        weights = arcs.weight + (prices @ amounts)[arcs.group] * network.devices + extra
        found = lengths_of(network, weights)
        length = found.least(network)
        if not np.isfinite(length):
            return nothing
        paid = float((np.where(prices > 0, most, least) * prices).sum()) + extra * (instance.num_stages or 0)
        bound = length - paid
        if number % 8 == 0:
            lengths = np.maximum(lengths, through(network, found) - paid)
        step = step if bound > best else step * 0.7
        if bound > best:
            best, best_weights, paid_at_best = bound, weights, paid
        path = shortest_path(network, found)
        used = amounts @ np.bincount(arcs.group[path], weights=network.devices[path], minlength=instance.num_groups)
        slope = np.where(prices > 0, used - most, np.where(used > most, used - most, np.minimum(used - least, 0.0)))
        lack = float(len(path)) - instance.num_stages if instance.num_stages is not None else 0.0
        norm = float((slope**2).sum()) + lack**2
        goal = target if np.isfinite(target) else best + abs(best) * 0.1
        if not norm or bound >= goal:
            break
        stride = step * max(goal - bound, 1e-9 * abs(goal)) / norm
        prices = _clip(prices + stride * slope, least)
        extra += stride * lack
    lengths = np.maximum(lengths, through(network, lengths_of(network, best_weights)) - paid_at_best)
    return Priced(bound=best * (1 - 1e-9), through=lengths * (1 - 1e-9))


def _rows(instance: Instance) -> tuple[Floats, Floats]:
    """What one device of every group takes of every row with a price, and how much there is."""
    amounts, most = np.eye(instance.num_groups), np.asarray(instance.counts, dtype=np.float64)
    mean = float(np.mean(instance.prices)) if instance.prices else 0.0
    if not mean:
        return amounts, most
    return np.vstack([amounts, np.asarray(instance.prices) / mean]), np.append(most, instance.budget / mean)


def _clip(prices: Floats, least: Floats) -> Floats:
    """Prices may be negative (a reward) only for groups that have to be used."""
    return np.where(least > 0, prices, np.maximum(prices, 0.0))
