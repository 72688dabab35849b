"""The least sum of weights below a threshold, exactly: labels for every vector of used devices and number of stages.

``frontier`` keeps two least sums of each suffix of a plan, which may belong to two suffixes, and charges 1F1B's memory
for the fewest stages that its devices can be.  Here every suffix is a label

    (node, devices used, stages, D, L)      D: its sum of weights;  L: the same with what its optimizers add

and one is dropped only where another one at the same node, with the same devices and as many stages, has neither D nor
L larger (labels of resource-constrained shortest paths; Desrochers and Soumis 1988).  Only rows C11 is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.bottleneck import States, states_of
from autopart.planning.searching.frontier import Least, furthest
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.network import from_start, network_of
from autopart.planning.searching.updates import latest_sums
from autopart.planning.solving.effort import IsOver, never

__all__ = ["exact_sum"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TOLERANCE = 1e-9
"""relative: labels that are better by less are dropped"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labels:
    """Of one node, sorted by state."""

    vector: Ints
    stages: Ints
    sums: Floats
    """D"""
    latest: Floats
    """L"""
    arc: Ints
    """that begins the suffix"""
    behind: Ints
    """the label that follows it, among those of the node that the arc leads to"""

    def __len__(self) -> int:
        return len(self.vector)

    def keep(self, chosen: Ints | npt.NDArray[np.bool_]) -> _Labels:
        return _Labels(**{name: getattr(self, name)[chosen] for name in self.__slots__})


def exact_sum(
    instance: Instance, arcs: Arcs, below: float, most_steps: int, *, out_of_time: IsOver = never
) -> Least:
    """The least sum of weights over the arcs given, with what optimizers add, and the path that attains it.

    Args:
        instance: what the arcs are of; all rows but C11 are kept.
        arcs: in the order of the instance's, all below one threshold.
        below: sums from here on do not matter: if there is none below, it is said that there is no path.
        most_steps: labels to try, above which it is given up.
        out_of_time: whether it is given up at once.
    """
    states, width = states_of(instance, 1), instance.num_classes + 1
    room, network = furthest(instance, arcs, states)[::-1], network_of(instance, arcs)
    before = [from_start(network, weights).min(axis=1) for weights in (arcs.weight, arcs.weight - arcs.saves)]
    nothing = np.zeros(1, dtype=np.int64)
    end = _Labels(
        vector=nothing, stages=nothing, sums=np.zeros(1), latest=np.zeros(1), arc=nothing - 1, behind=nothing - 1
    )
    labels = {instance.end * width + link_class: end for link_class in range(instance.num_classes)}
    keys, num_steps = arcs.first * width + arcs.before, 0
    for key in np.unique(keys)[::-1].tolist():
        low, high = np.searchsorted(keys, [key, key + 1])
        made = [each for arc in range(low, high) if len(each := _extended(instance, arcs, arc, states, labels))]
        num_steps += sum(map(len, made))
        if num_steps > most_steps or out_of_time():
            return Least(total=math.nan, path=())
        if made:
            found = _joined(made)
            useful = (found.sums + before[0][key] < below) & (found.latest + before[1][key] < below)
            found = found.keep(useful & (room[found.vector] >= key // width) & states.affordable[found.vector])
            labels[key] = _undominated(found)
    whole = labels.get(instance.num_classes)
    if whole is None:
        return Least(total=math.inf, path=())
    counted = whole.stages <= instance.most_stages
    if instance.num_stages is not None:
        counted &= whole.stages == instance.num_stages
    if not counted.any():
        return Least(total=math.inf, path=())
    best = int(np.where(counted, whole.latest, math.inf).argmin())
    total = float(whole.latest[best]) * (1 - TOLERANCE * instance.end)
    return Least(total=total, path=_path(arcs, labels, width, instance, best))


def _extended(instance: Instance, arcs: Arcs, arc: int, states: States, labels: dict[int, _Labels]) -> _Labels:
    """The labels that begin with an arc."""
    target = int(arcs.last[arc]) * (instance.num_classes + 1) + int(arcs.after[arc])
    group, width = int(arcs.group[arc]), int(arcs.width[arc])
    behind = labels.get(target)
    if behind is None:
        none, empty = np.zeros(0, dtype=np.int64), np.zeros(0)
        return _Labels(vector=none, stages=none, sums=empty, latest=empty, arc=none, behind=none)
    in_flight = np.minimum(behind.stages + 1, instance.num_microbatches)
    fits = states.coordinates[group][behind.vector] + width <= instance.groups[group].size
    chosen = np.flatnonzero(fits & (in_flight <= int(arcs.most_in_flight[arc])))
    weight, sums = float(arcs.weight[arc]), behind.sums[chosen]
    return _Labels(
        vector=behind.vector[chosen] + width * states.strides[group], stages=behind.stages[chosen] + 1,
        sums=sums + weight,
        latest=latest_sums(weight, arcs.update[arc], arcs.saves[arc], sums, behind.latest[chosen]),
        arc=np.full(len(chosen), arc), behind=chosen,
    )


def _joined(parts: list[_Labels]) -> _Labels:
    return _Labels(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _Labels.__slots__})


def _undominated(labels: _Labels) -> _Labels:
    """Of labels with the same devices and stages those that none has both sums no larger than."""
    if not len(labels):
        return labels
    labels = labels.keep(np.lexsort((labels.latest, labels.sums, labels.stages, labels.vector)))
    new = np.append(True, (np.diff(labels.vector) != 0) | (np.diff(labels.stages) != 0))
    span = 2 * float(np.abs(labels.latest).max()) + 1.0
    shifted = labels.latest - span * np.cumsum(new)  # every state's labels are below those of the state before
    least = np.minimum.accumulate(shifted)
    better = shifted[1:] < least[:-1] - TOLERANCE * span
    return labels.keep(new | np.append(True, better))


def _path(arcs: Arcs, labels: dict[int, _Labels], width: int, instance: Instance, best: int) -> tuple[int, ...]:
    path, key = [], instance.num_classes
    while key // width < instance.end:
        arc, best = int(labels[key].arc[best]), int(labels[key].behind[best])
        path.append(arc)
        key = int(arcs.last[arc]) * width + int(arcs.after[arc])
    return tuple(path)
