"""The best contiguous placement whose boundaries belong to a family of ideals: an exact dynamic program.

After Tarnawski et al. 2020, section 4, for any number of kinds: the least largest load with which an ideal can be
placed on n_1, ..., n_G devices, over all last parts.  What makes it quick is a limit from a known placement.  A part
above it is dropped, and so is an ideal whose remaining items are too much for the remaining devices by prices
(dagbalance.py): the better the limit, the narrower the windows in which ideals survive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopart.planning.graphs.dagideals import Family
from autopart.planning.graphs.dagproblem import DagProblem, Part

__all__ = ["OutOfTime", "best_split"]


class OutOfTime(Exception):  # noqa: N818
    """The deadline came before the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Per state (devices used of each kind) and ideal: the least largest load, and the step that attains it."""

    states: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    """[state][kind]: the state with one more device of the kind used; -1 if there is none"""
    value: NDArray[np.float64]
    parent: NDArray[np.int32]
    kind: NDArray[np.int8]
    alive: NDArray[np.bool_]
    """whether the rest may still be placed below the limit"""


def best_split(
    problem: DagProblem, family: Family, *, limit: float, prices: Sequence[NDArray[np.float64]],
    out_of_time: Callable[[], bool],
) -> tuple[Part, ...] | None:
    """The best contiguous placement over the family with a largest load below ``limit``, in order; None: there is none.

    Raises:
        OutOfTime: ``out_of_time()`` became true; nothing is known then.
    """
    table = _empty_table(problem, family, limit, prices)
    steps = _Steps(problem, family, limit)
    for at in range(len(family) - 1):
        if at % 16 == 0 and out_of_time():
            raise OutOfTime
        active = np.flatnonzero(table.value[:, at] < limit)
        if not active.size:
            continue
        found = steps.candidates(at, table, active)
        if not found.size:
            continue
        comm = steps.transfers(at, found)
        for kind in range(len(problem.kinds)):
            _extend(table, kind, at, found, steps.loads(kind, at, found, comm), active)
    return _traced(table, family)


def _empty_table(
    problem: DagProblem, family: Family, limit: float, prices: Sequence[NDArray[np.float64]]
) -> _Table:
    states = tuple(itertools.product(*(range(kind.count + 1) for kind in problem.kinds)))
    shape = (len(states), len(family))
    table = _Table(
        states=states, after=_after(problem, states), value=np.full(shape, np.inf),
        parent=np.full(shape, -1, dtype=np.int32), kind=np.zeros(shape, dtype=np.int8),
        alive=np.zeros(shape, dtype=np.bool_),
    )
    table.value[0, 0] = 0.0
    remaining = _remaining(problem, family, prices)
    for index, state in enumerate(states):
        left = np.array([kind.count - used for kind, used in zip(problem.kinds, state, strict=True)])
        usable = tuple(np.flatnonzero(left).tolist())
        table.alive[index, :-1] = bool(usable)
        table.alive[index, -1] = True
        for price, work in zip(prices, remaining[usable], strict=True) if usable else ():
            total = float(left @ price)
            table.alive[index] &= work <= (limit * total if total > 0 else np.finfo(np.float64).max)
    return table


def _after(problem: DagProblem, states: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    number = {state: index for index, state in enumerate(states)}
    kinds = range(len(problem.kinds))
    return tuple(
        tuple(number.get(tuple(used + (g == kind) for g, used in enumerate(state)), -1) for kind in kinds)
        for state in states
    )


def _remaining(
    problem: DagProblem, family: Family, prices: Sequence[NDArray[np.float64]]
) -> dict[tuple[int, ...], list[NDArray[np.float64]]]:
    """By usable kinds, then by prices: per ideal, the least price of what is not yet in it; inf if it cannot run.

    Every net that the ideal's boundary cuts is paid at least once more, by a device that gets some of its items.
    """
    times = np.array(problem.times)
    runs = np.isfinite(times)
    kinds = [g for g, kind in enumerate(problem.kinds) if kind.count]
    subsets = [list(each) for size in range(1, len(kinds) + 1) for each in itertools.combinations(kinds, size)]
    rows = []
    for usable in subsets:
        nowhere = ~runs[usable].any(axis=0)
        rows.append(nowhere.astype(np.float64))
        for price in prices:
            priced = np.where(runs, price[:, None] * np.where(runs, times, 0.0), np.inf)[usable].min(axis=0)
            rows.append(np.where(nowhere, 0.0, priced))
    sums = iter(family.sums(np.array(rows)))
    found: dict[tuple[int, ...], list[NDArray[np.float64]]] = {}
    for usable in subsets:
        stuck = next(sums)
        for price in prices:
            cost = next(sums)
            transfer = min(float(price[g]) * problem.kinds[g].transfer_factor for g in usable) * family.cut_cost
            rest = (cost[-1] - cost + transfer) * (1 - 1e-9) - 1e-9 * cost[-1]
            found.setdefault(tuple(usable), []).append(np.where(stuck < stuck[-1] - 0.5, np.inf, rest))
    return found


class _Steps:
    """Loads of the parts that lead from one ideal to larger ones."""

    def __init__(self, problem: DagProblem, family: Family, limit: float) -> None:
        self.family = family
        self.limit = limit
        self.kinds = problem.kinds
        self.full = np.array([len(net.pins) for net in problem.nets], dtype=np.uint16)
        self.cost = np.array([net.cost for net in problem.nets])
        self.reach = limit / family.work_unit + problem.num_items

    def candidates(self, at: int, table: _Table, active: NDArray[np.int64]) -> NDArray[np.int64]:
        """Supersets of ideal ``at`` that add no more work than the limit allows and from which there is a way on."""
        family = self.family
        end = int(np.searchsorted(family.work, family.work[at] + self.reach, side="right"))
        targets = sorted({target for state in active.tolist() for target in table.after[state] if target >= 0})
        found = np.flatnonzero(table.alive[targets, at + 1 : end].any(axis=0)) + at + 1
        for word in family.words:
            if word[at]:
                found = found[(word[at] & ~word[found]) == 0]
        return found

    def transfers(self, at: int, found: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cost of the nets that the part cuts.

        All nets cut by the larger boundary count, except those cut by both boundaries with nothing in between; and
        those cut by the smaller boundary that end in the part.
        """
        family = self.family
        comm = family.cut_cost[found]
        here = family.pins[:, at]
        (open_nets,) = np.nonzero((here > 0) & (here < self.full))
        if open_nets.size:
            there = family.pins[open_nets[:, None], found]
            ends = (there == self.full[open_nets][:, None]).astype(np.int8)
            same = (there == here[open_nets][:, None]).astype(np.int8)
            comm = comm + self.cost[open_nets] @ (ends - same).astype(np.float64)
        return np.asarray(np.maximum(comm, 0.0))

    def loads(
        self, kind: int, at: int, found: NDArray[np.int64], comm: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Loads of the parts on a kind; inf where the kind cannot run or hold them."""
        family = self.family
        load = family.times[kind][found] - family.times[kind][at] + self.kinds[kind].transfer_factor * comm
        fits = family.blocked[kind][found] == family.blocked[kind][at]
        fits &= family.sizes[found] - family.sizes[at] <= self.kinds[kind].capacity_bytes * (1 + 1e-12)
        return np.where(fits & (load < self.limit), load, np.inf)


def _extend(
    table: _Table, kind: int, at: int, found: NDArray[np.int64], load: NDArray[np.float64], active: NDArray[np.int64]
) -> None:
    usable = np.flatnonzero(load < np.inf)
    if not usable.size:
        return
    found, load = found[usable], load[usable]
    for state in active.tolist():
        target = table.after[state][kind]
        if target < 0:
            continue
        largest = np.maximum(load, table.value[state, at])
        (better,) = np.nonzero((largest < table.value[target, found]) & table.alive[target, found])
        chosen = found[better]
        table.value[target, chosen] = largest[better]
        table.parent[target, chosen] = at
        table.kind[target, chosen] = kind


def _traced(table: _Table, family: Family) -> tuple[Part, ...] | None:
    end = len(family) - 1
    state = int(np.argmin(table.value[:, end]))
    if not np.isfinite(table.value[state, end]):
        return None
    parts: list[Part] = []
    where = table.states[state]
    number = {state: index for index, state in enumerate(table.states)}
    while end:
        index = number[where]
        kind, start = int(table.kind[index, end]), int(table.parent[index, end])
        inside = family.ideals[end] & ~family.ideals[start]
        items = tuple(item for item in range(inside.bit_length()) if inside >> item & 1)
        parts.append(Part(kind=kind, items=items))
        where = tuple(used - (g == kind) for g, used in enumerate(where))
        end = start
    return tuple(reversed(parts))
