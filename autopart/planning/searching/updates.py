"""What optimizers add to a step: the one that ends last, counted from where the first stage's backwards end.

The gradient of the last micro-batch goes from stage s to the first one.  Stage s waits until it has sent its own, as
torch's schedules do, and is then through earlier than the first stage by at least

    hidden_s = sum over j < s of backward_j  +  sum over 1 <= j < s of return_j

and a step ends  max over s of (optimizer_s - hidden_s)  after the first stage's last backward: the term of C12.  A path
a_0 a_1 ... then costs, beside its largest period,

    max over s of  sum over j < s of (weight_j - saves_j)  +  weight_s + update_s  +  sum over j > s of weight_j

with  saves_j = backward_j + return_j, for the first stage and its optimizer, which is in its weight;  update_s =
optimizer_s, for the first stage 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.instance import Arcs
from autopart.schema.graph import Graph

__all__ = ["Tied", "latest_sums", "least_hidden", "tied_weights", "with_late_updates", "without_updates"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Amount = float | np.float64 | Floats
Tied = tuple[tuple[int, Bools], ...]
"""bytes of every tied weight, and whether the stage [a, b] has some of its users and not all"""


def tied_weights(graph: Graph, boundaries: Sequence[int]) -> Tied:
    """The trainable weights that more than one layer uses: each is exchanged once per step by the stages it is in."""
    users: dict[int, list[int]] = {}
    for position, layer in enumerate(graph.layers):
        for index in sorted(set(layer.weights)):
            users.setdefault(index, []).append(position)
    weights = ((graph.weights[index], at) for index, at in sorted(users.items()) if len(at) > 1)
    return tuple(
        (weight.bytes, _parted(np.searchsorted(at, boundaries), len(at)))
        for weight, at in weights if weight.trainable and not weight.is_buffer
    )


def _parted(before: npt.NDArray[np.int64], num: int) -> Bools:
    """``before``: how many of the ``num`` users are before every boundary."""
    inside = before[None, :] - before[:, None]
    return np.asarray((inside > 0) & (inside < num))


def latest_sums(
    weight: Amount, update: Amount, saves: Amount, sums: Floats, latest: Floats
) -> Floats:
    """What an arc and a suffix behind it cost with what their optimizers add; ``sums``, ``latest``: of the suffix.

    Without and with its optimizers.  The last to end is the arc's own, or one behind.
    """
    return np.asarray(np.maximum(sums + (weight + update), latest + (weight - saves)))


def with_late_updates(arcs: Arcs) -> Arcs:
    """The arcs with ``update`` 0 where whatever comes before is through later: no path's cost changes by that."""
    hidden = least_hidden(arcs)
    return replace(arcs, update=np.where(arcs.update > hidden[arcs.first], arcs.update, 0.0))


def least_hidden(arcs: Arcs) -> Floats:
    """Of every boundary, what any path to it saves at least: a later optimizer that adds no more is never the last."""
    hidden = np.full(int(arcs.last.max(initial=0)) + 1, np.inf)
    hidden[0] = 0.0
    starts = np.flatnonzero(np.diff(arcs.first, prepend=-1))
    for low, high in pairwise([*starts.tolist(), len(arcs)]):
        some = slice(low, high)
        np.minimum.at(hidden, arcs.last[some], hidden[arcs.first[low]] + arcs.saves[some])
    return hidden


def without_updates(arcs: Arcs) -> Arcs:
    """The arcs for an objective that has no optimizer in it beside what their weights say."""
    return replace(arcs, update=np.zeros(len(arcs)), saves=np.zeros(len(arcs)))
