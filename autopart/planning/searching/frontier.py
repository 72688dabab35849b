"""The least sum of weights below a threshold, over all vectors of used devices that can be part of a plan.

F[k, h, v] is the least sum of weights of stages that run the model from boundary k to its end on exactly the devices v
after a stage of link class h.  Only vectors matter whose complement can run the layers before k below the threshold;
near the least threshold these are few, which makes programs of tens of thousands of vectors quick.  1F1B's memory is
charged for the fewest stages that v can be: what is found is a lower bound, and its path is to be looked at again.

Where optimizers behind the first stage may be the last to end, there is a second sum with what those of the suffix add;
each is the least by itself, as in ``network.lengths_of``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.bottleneck import MOST_STATES, States, states_of
from autopart.planning.searching.chain import Path
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.updates import latest_sums, least_hidden
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Least", "can_list", "furthest", "least_sum"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Labels = dict[tuple[int, int], tuple[Ints, Floats]]
"""of every node (boundary, link class) the vectors, as flat indices ascending, and their least sums [which, vector]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """What was found."""

    total: float
    """no plan below the threshold has a smaller sum of weights; inf: there is none; nan: it would take too long"""
    path: Path
    """that attains it, of the arcs given; () where there is none"""


def can_list(instance: Instance) -> bool:
    """Whether the vectors of used devices are few enough to be listed."""
    return math.prod(count + 1 for count in instance.counts) <= MOST_STATES


def furthest(instance: Instance, arcs: Arcs, states: States) -> Ints:
    """The last boundary up to which at most devices v can run the model, whatever comes after."""
    reach = np.zeros(states.depth.size, dtype=np.int64)
    tables = {}
    for group, width in sorted(set(zip(arcs.group.tolist(), arcs.width.tolist(), strict=True))):
        table = np.zeros(instance.end + 1, dtype=np.int64)
        chosen = (arcs.group == group) & (arcs.width == width)
        np.maximum.at(table, arcs.first[chosen], arcs.last[chosen])
        tables[group, width] = np.maximum.accumulate(table)
    for level in states.levels[1:]:
        best = np.zeros(len(level), dtype=np.int64)
        for (group, width), table in tables.items():
            some = np.flatnonzero(states.coordinates[group, level] >= width)
            best[some] = np.maximum(best[some], table[reach[level[some] - width * states.strides[group]]])
        reach[level] = best
    cube = reach.reshape(tuple(count + 1 for count in instance.counts))
    for axis in range(cube.ndim):
        cube = np.maximum.accumulate(cube, axis=axis)
    return np.asarray(cube.reshape(-1))


def least_sum(instance: Instance, arcs: Arcs, most_steps: int, *, out_of_time: IsOver = never) -> Least:
    """The least sum of weights over the arcs given, which are all below one threshold.

    Args:
        instance: what the arcs are of; only rows C1 to C4, C6 and C9 are kept.
        arcs: in the order of the instance's.
        most_steps: sums to try, above which it is given up.
        out_of_time: whether it is given up at once.
    """
    most = min(instance.num_microbatches, instance.num_devices, instance.end)
    binding = bool((arcs.most_in_flight < most).any())
    states = states_of(instance, most if binding else 1)
    size = states.depth.size
    room = furthest(instance, arcs, states)[::-1]  # of the complement: flat indices run backwards
    width, hidden = instance.num_classes + 1, least_hidden(arcs)
    keys = arcs.first * width + arcs.before
    labels: Labels = {
        (instance.end, link_class): (np.zeros(1, dtype=np.int64), np.zeros((1, 1)))
        for link_class in range(instance.num_classes)
    }
    num_steps = 0
    for key in np.unique(keys)[::-1].tolist():
        boundary, before = divmod(key, width)
        low, high = np.searchsorted(keys, [key, key + 1])
        row = np.full((1 + _is_late(arcs, labels, range(low, high)), size), np.inf)
        num_steps += _relax_row(instance, arcs, states, labels, range(low, high), row)
        if num_steps > most_steps or out_of_time():
            return Least(total=math.nan, path=())
        alive = np.flatnonzero(np.isfinite(row[0]) & (room >= boundary) & states.affordable)
        sums = row[:, alive]
        matters = bool((sums[-1] - sums[0] > hidden[boundary]).any())
        labels[boundary, before] = alive, sums if matters or not boundary else sums[:1]
    states_found, sums = labels.get((0, instance.num_classes), (np.zeros(0, dtype=np.int64), np.zeros((1, 0))))
    if not sums.size:
        return Least(total=math.inf, path=())
    best = int(sums[-1].argmin())  # of the source
    return Least(total=float(sums[-1, best]), path=_walk(instance, arcs, states, labels, int(states_found[best])))


def _relax_row(
    instance: Instance, arcs: Arcs, states: States, labels: Labels, some: range, row: Floats
) -> int:
    """Take arcs that leave one node into its row; how many sums were tried."""
    num_steps, counts, num_devices = 0, instance.counts, instance.num_devices
    columns = (arcs.last, arcs.after, arcs.group, arcs.width, arcs.most_in_flight)
    listed = zip(some, *(each[some.start : some.stop].tolist() for each in columns), strict=True)
    for arc, last, link_class, group, width, in_flight in listed:
        after = labels.get((last, link_class))
        if after is None:
            continue
        vectors, sums = after
        num_steps += len(vectors)
        fits = states.coordinates[group][vectors] + width <= counts[group]
        moved = vectors + width * states.strides[group]
        moved, sums = moved[fits], sums[:, fits]
        if in_flight < num_devices:
            holds = states.depth[moved] < in_flight
            moved, sums = moved[holds], sums[:, holds]
        for least, totals in zip(row, _totals(arcs, arc, sums), strict=False):
            least[moved] = np.minimum(least[moved], totals)
    return num_steps


def _is_late(arcs: Arcs, labels: Labels, some: range) -> bool:
    """Whether arcs that leave one node, or what is behind them, have an optimizer that may be the last to end."""
    if (arcs.update[some.start : some.stop] > 0).any():
        return True
    targets = ((int(arcs.last[arc]), int(arcs.after[arc])) for arc in some)
    return any(len(labels[target][1]) > 1 for target in targets if target in labels)


def _totals(arcs: Arcs, arc: int, sums: Floats) -> tuple[Floats, Floats]:
    """The sums of what an arc and a suffix behind it cost: of weights, and with what optimizers add."""
    weight, update = arcs.weight[arc], arcs.update[arc]
    if len(sums) == 1:
        return sums[0] + weight, sums[0] + (weight + update)
    return sums[0] + weight, latest_sums(weight, update, arcs.saves[arc], *sums)


def _walk(instance: Instance, arcs: Arcs, states: States, labels: Labels, vector: int) -> Path:
    """The arcs that attain the least sum, found again from the labels."""
    path, boundary, before = [], 0, instance.num_classes
    which = len(labels[boundary, before][1]) - 1
    while boundary < instance.end:
        known, sums = labels[boundary, before]
        wanted = float(sums[which, np.searchsorted(known, vector)])
        for arc in np.flatnonzero((arcs.first == boundary) & (arcs.before == before)).tolist():
            behind = _behind(arcs, states, labels, arc, vector)
            if len(behind) and float(_totals(arcs, arc, behind)[which][0]) == wanted:
                break
        if len(behind) == 1 or behind[0, 0] + arcs.update[arc] >= behind[1, 0] - arcs.saves[arc]:
            which = 0  # no optimizer behind it is the last to end
        path.append(arc)
        boundary, before = int(arcs.last[arc]), int(arcs.after[arc])
        vector -= int(arcs.width[arc]) * states.strides[int(arcs.group[arc])]
    return tuple(path)


def _behind(arcs: Arcs, states: States, labels: Labels, arc: int, vector: int) -> Floats:
    """The least sums behind an arc that begins a vector, [which, 1]; empty if it does not begin it."""
    group, width, nothing = int(arcs.group[arc]), int(arcs.width[arc]), np.zeros((0, 1))
    after = labels.get((int(arcs.last[arc]), int(arcs.after[arc])))
    if after is None or states.coordinates[group, vector] < width:
        return nothing
    if states.depth[vector] >= int(arcs.most_in_flight[arc]):
        return nothing
    known, sums = after
    rest = vector - width * states.strides[group]
    at = int(np.searchsorted(known, rest))
    return np.asarray(sums[:, at : at + 1]) if at < len(known) and int(known[at]) == rest else nothing
