"""The least largest stage time, by a threshold dynamic program over (devices used per group, link class before).

Under a threshold, let m[v, h] be the first boundary from which devices v can run the model to its end, after a stage of
link class h.  Where a suffix of the model can be run, every shorter one is taken to be as well, so

    m[v, h] = min over groups g and widths r of  back[g, r, h](m[v - r e_g, class after])

with back[g, r, h](j) the first boundary i of which a stage (i, j') with j' >= j is below the threshold: a table per
threshold.  Where no v has m[v, source] = 0 no plan's largest stage time is below it: a proof.  Where one has, a path is
looked for, and may not be there (memory and messages need not grow with the stage).  1F1B's memory is charged for the
fewest stages that v can be from here to the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.chain import Path
from autopart.planning.searching.instance import Instance
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Bottleneck", "Moves", "States", "least_threshold", "moves_of", "states_of"]

MOST_STATES = 300_000

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What was found."""

    floor_seconds: float
    """no plan's largest stage time is below"""
    path: Path
    """with stages that are hardly longer; () if none was found"""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """All vectors of used devices, by levels of equally many."""

    coordinates: Ints
    """[g, v]"""
    strides: tuple[int, ...]
    levels: tuple[Ints, ...]
    depth: Ints
    """fewest stages that the devices can be, counted from 0, at most the deepest told apart"""
    affordable: npt.NDArray[np.bool_]
    """whether the devices cost no more than the budget, if there is one (row C9)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Arcs by (group, width, class after): what the tables of a threshold are made from."""

    keys: tuple[tuple[int, int, int], ...]
    arcs: tuple[Ints, ...]
    cells: tuple[Ints, ...]
    """of every arc its flat index in back[class before, depth, last]"""
    shape: tuple[int, int, int]


def states_of(instance: Instance, depths: int) -> States:
    """All vectors of used devices, where 1F1B's memory tells so many depths apart."""
    shape = tuple(count + 1 for count in instance.counts)
    coordinates = np.indices(shape).reshape(len(shape), -1)
    totals = coordinates.sum(axis=0)
    order = np.argsort(totals, kind="stable")
    ends = np.searchsorted(totals[order], np.arange(int(totals.max()) + 2))
    fewest = np.minimum(-(-coordinates // instance.widest), coordinates).sum(axis=0)
    return States(
        coordinates=coordinates,
        strides=tuple(math.prod(shape[g + 1 :]) for g in range(len(shape))),
        levels=tuple(order[low:high] for low, high in pairwise(ends.tolist())),
        depth=np.clip(fewest - 1, 0, depths - 1),
        affordable=np.asarray(instance.prices or (0.0,) * len(shape)) @ coordinates <= instance.budget * (1 + 1e-9),
    )


def moves_of(instance: Instance) -> Moves:
    """The arcs of an instance by group, width and class after."""
    arcs = instance.arcs
    most = min(instance.num_microbatches, instance.num_devices, instance.end)
    depths = most if (arcs.most_in_flight < most).any() else 1
    shape = (instance.num_classes + 1, depths, instance.end + 1)
    deepest = np.clip(arcs.most_in_flight, 1, depths) - 1
    cells = (arcs.before * depths + deepest) * shape[2] + arcs.last
    keys = sorted(set(zip(arcs.group.tolist(), arcs.width.tolist(), arcs.after.tolist(), strict=True)))
    chosen = tuple(np.flatnonzero((arcs.group == g) & (arcs.width == r) & (arcs.after == c)) for g, r, c in keys)
    return Moves(keys=tuple(keys), arcs=chosen, cells=tuple(cells[each] for each in chosen), shape=shape)


def _tables(instance: Instance, moves: Moves, threshold: float) -> list[Ints]:
    """back[h, depth, j] of every key; one past the end where there is no stage."""
    tables = []
    for each, cells in zip(moves.arcs, moves.cells, strict=True):
        table = np.full(math.prod(moves.shape), instance.end + 1, dtype=np.int64)
        below = instance.arcs.seconds[each] < threshold
        np.minimum.at(table, cells[below], instance.arcs.first[each[below]])
        back = table.reshape(moves.shape)
        back = np.minimum.accumulate(back[:, ::-1], axis=1)[:, ::-1]
        tables.append(np.minimum.accumulate(back[:, :, ::-1], axis=2)[:, :, ::-1])
    return tables


def _first_boundaries(instance: Instance, states: States, moves: Moves, threshold: float) -> tuple[Ints, int]:
    """m[v, h] as far as needed, and the devices v with which the whole model runs; -1 if there are none."""
    tables = [table.reshape(-1) for table in _tables(instance, moves, threshold)]
    num_classes, num_depths, num_ends = moves.shape
    nowhere = instance.end + 1
    of_class = np.arange(num_classes) * (num_depths * num_ends)
    found = np.full((states.depth.size, num_classes), nowhere, dtype=np.int64)
    found[0] = instance.end
    for level in states.levels[1:]:
        best = np.full((len(level), num_classes), nowhere, dtype=np.int64)
        for (group, width, link_class), table in zip(moves.keys, tables, strict=True):
            some = np.flatnonzero(states.coordinates[group, level] >= width)
            chosen = level[some]
            after = found[chosen - width * states.strides[group], link_class]
            runs = after <= instance.end
            some, chosen, after = some[runs], chosen[runs], after[runs]
            cells = (states.depth[chosen] * num_ends + after)[:, None] + of_class
            best[some] = np.minimum(best[some], table.take(cells))
        best[~states.affordable[level]] = nowhere
        found[level] = best
        through = np.flatnonzero(best[:, -1] == 0)
        if len(through):
            return found, int(level[through[0]])
    return found, -1


def _walk(instance: Instance, states: States, moves: Moves, threshold: float, found: Ints, state: int) -> Path:
    """A path of those devices, each stage as long as can be; () if the search comes to a dead end."""
    arcs, path = instance.arcs, []
    boundary, before = 0, instance.num_classes
    while boundary < instance.end:
        choices = []
        for (group, width, link_class), each in zip(moves.keys, moves.arcs, strict=True):
            if states.coordinates[group, state] < width:
                continue
            after = found[state - width * states.strides[group], link_class]
            good = each[
                (arcs.first[each] == boundary) & (arcs.before[each] == before) & (arcs.last[each] >= after)
                & (arcs.seconds[each] < threshold) & (arcs.most_in_flight[each] > states.depth[state])
            ]
            if len(good):
                choices.append(int(good[arcs.last[good].argmax()]))
        if not choices:
            return ()
        path.append(max(choices, key=lambda arc: int(arcs.last[arc])))
        boundary, before = int(arcs.last[path[-1]]), int(arcs.after[path[-1]])
        state -= int(arcs.width[path[-1]]) * states.strides[int(arcs.group[path[-1]])]
    return tuple(path)


def least_threshold(
    instance: Instance, high: float, tight: float, *, out_of_time: IsOver = never
) -> Bottleneck:
    """The largest stage time that no plan can be below, to a share ``tight``, where the vectors can be listed.

    The floor of the instance is taken as it is where it is 0: layers that are nothing but views.
    """
    low = instance.floor_seconds
    path: Path = ()
    num_states = math.prod(count + 1 for count in instance.counts)
    high = min(high, float(instance.arcs.seconds.max(initial=0.0)) * (1 + tight))
    if num_states > MOST_STATES or not len(instance.arcs) or low <= 0:
        return Bottleneck(floor_seconds=low, path=path)
    moves = moves_of(instance)
    states, step = states_of(instance, moves.shape[1]), 1e-3
    known = False
    while high > low * (1 + tight) and not out_of_time():
        middle = math.sqrt(low * high) if known else min(low * (1 + step), high)
        found, state = _first_boundaries(instance, states, moves, middle)
        if state >= 0:
            path = _walk(instance, states, moves, middle, found, state) or path
            high, known = middle, True
        elif middle >= high:
            low = high
        else:
            low, step = middle, 4 * step
    return Bottleneck(floor_seconds=low, path=path)
