"""Ideals of a precedence graph: sets of items that hold everything that comes before any of them.

A contiguous placement on devices in order is a chain of ideals; what a device gets is the difference of two.  A
*family* is the list of ideals that may be used: all of them, or those along some topological orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopart.planning.graphs.dagproblem import DagProblem
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Family", "all_ideals", "family_of", "ideals_near", "prefixes"]

WORK_UNITS = 2.0**40

CHUNK = 4096
"""ideals whose items are spread out at a time"""


def all_ideals(problem: DagProblem, most: int, *, out_of_time: IsOver = never) -> list[int] | None:
    """Every ideal as a bit set (bit i: item i), or None if there are more than ``most``, or no time to list them."""
    before = [0] * problem.num_items
    after: list[list[int]] = [[] for _ in range(problem.num_items)]
    for a, b in problem.precedence:
        before[b] |= 1 << a
        after[a].append(b)
    ready = sum(1 << item for item in range(problem.num_items) if not before[item])
    found = {0: ready}
    waiting = [0]
    while waiting:
        ideal = waiting.pop()
        ready = found[ideal]
        for item in _bits(ready):
            larger = ideal | 1 << item
            if larger in found:
                continue
            if len(found) >= most or (len(found) % 256 == 0 and out_of_time()):
                return None
            freed = sum(1 << b for b in after[item] if not before[b] & ~larger)
            found[larger] = (ready & ~(1 << item)) | freed
            waiting.append(larger)
    return list(found)


def ideals_near(problem: DagProblem, start: int, most: int) -> list[int]:
    """The ideals that are the fewest items away from one, itself first: up to ``most`` of them."""
    before, after = [0] * problem.num_items, [0] * problem.num_items
    for a, b in problem.precedence:
        before[b] |= 1 << a
        after[a] |= 1 << b
    found = {start: None}
    items = range(problem.num_items)
    free = {start: (
        sum(1 << item for item in items if not start >> item & 1 and not before[item] & ~start),
        sum(1 << item for item in items if start >> item & 1 and not after[item] & start),
    )}
    while free:
        nearest, free = free, {}
        for ideal, (addable, removable) in nearest.items():
            for item in _bits(addable | removable):
                other = ideal ^ 1 << item
                if other in found:
                    continue
                if len(found) >= most:
                    return list(found)
                found[other] = None
                one = 1 << item
                if addable & one:
                    freed = sum(1 << b for b in _bits(after[item]) if not before[b] & ~other)
                    free[other] = addable & ~one | freed, removable & ~before[item] | one
                else:
                    freed = sum(1 << a for a in _bits(before[item]) if not after[a] & other)
                    free[other] = addable & ~after[item] | one, removable & ~one | freed
    return list(found)


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def prefixes(orders: Iterable[Sequence[int]]) -> list[int]:
    """The ideals along topological orders, each once."""
    found = {0: None}
    for order in orders:
        ideal = 0
        for item in order:
            ideal |= 1 << item
            found[ideal] = None
    return list(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Ideals with sums over them, in an order in which every superset comes later; the empty and the full one frame it.

    Arrays are indexed [.., ideal].
    """

    ideals: tuple[int, ...]
    words: NDArray[np.uint64]
    """[word, ideal], the bit sets"""
    work: NDArray[np.float64]
    """sum of the items' least times in whole units: exact, so that a superset never has less"""
    work_unit: float
    times: NDArray[np.float64]
    """[kind, ideal], items that the kind cannot run not counted"""
    blocked: NDArray[np.int32]
    """[kind, ideal], number of those"""
    sizes: NDArray[np.float64]
    pins: NDArray[np.uint16]
    """[net, ideal], how many of a net's items are in"""
    cut_cost: NDArray[np.float64]
    """cost of the nets that are cut by the boundary of the ideal"""

    def __len__(self) -> int:
        return len(self.ideals)

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[row, ideal]: for every row of ``values`` (one figure per item) the sum over the ideal's items."""
        return _sums(self.words, values.T)


def family_of(problem: DagProblem, ideals: Iterable[int]) -> Family:
    """The family of these ideals; the empty and the full one are added."""
    full = (1 << problem.num_items) - 1
    chosen = list(dict.fromkeys((*ideals, 0, full)))
    times = np.array(problem.times, dtype=np.float64)
    runs = np.isfinite(times)
    least = np.where(np.isfinite(least := times.min(axis=0)), least, 0.0)
    work_unit = max(float(least.sum()) / WORK_UNITS, 1e-300)
    whole = np.floor(least / work_unit)
    work = _sums(_words(chosen, problem.num_items), whole[:, None])[0]
    order = sorted(range(len(chosen)), key=lambda at: (work[at], chosen[at].bit_count(), chosen[at]))
    chosen = [chosen[index] for index in order]
    words = _words(chosen, problem.num_items)
    sums = _sums(words, np.vstack([np.where(runs, times, 0.0), ~runs, np.array([problem.sizes])]).T)
    num_kinds = len(problem.kinds)
    pins = _pins(problem, words)
    return Family(
        ideals=tuple(chosen), words=words, work=work[order], work_unit=work_unit, times=sums[:num_kinds],
        blocked=np.rint(sums[num_kinds : 2 * num_kinds]).astype(np.int32), sizes=sums[-1], pins=pins,
        cut_cost=_cut_cost(problem, pins),
    )


def _words(ideals: Sequence[int], num_items: int) -> NDArray[np.uint64]:
    num_words = max((num_items + 63) // 64, 1)
    data = b"".join(ideal.to_bytes(8 * num_words, "little") for ideal in ideals)
    return np.ascontiguousarray(np.frombuffer(data, dtype="<u8").reshape(len(ideals), num_words).T).astype(np.uint64)


def _membership(words: NDArray[np.uint64], num_items: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Chunks of the matrix [ideal, item] of zeros and ones."""
    for start in range(0, words.shape[1], CHUNK):
        part = slice(start, min(start + CHUNK, words.shape[1]))
        block = np.ascontiguousarray(words[:, part].T).astype("<u8").view(np.uint8)
        yield part, np.unpackbits(block, axis=1, bitorder="little")[:, :num_items]


def _sums(words: NDArray[np.uint64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """[column, ideal]: sums of the columns of ``weights`` (one row per item) over each ideal."""
    sums = np.empty((weights.shape[1], words.shape[1]))
    for part, members in _membership(words, weights.shape[0]):
        sums[:, part] = (members.astype(np.float64) @ weights).T
    return sums


def _pins(problem: DagProblem, words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    pins = np.empty((len(problem.nets), words.shape[1]), dtype=np.uint16)
    for part, members in _membership(words, problem.num_items):
        holds = np.ascontiguousarray(members.T)
        for index, net in enumerate(problem.nets):
            np.sum(holds[list(net.pins)], axis=0, dtype=np.uint16, out=pins[index, part])
    return pins


def _cut_cost(problem: DagProblem, pins: NDArray[np.uint16]) -> NDArray[np.float64]:
    cost = np.zeros(pins.shape[1])
    for net, row in zip(problem.nets, pins, strict=True):
        cost += net.cost * ((row > 0) & (row < len(net.pins)))
    return cost
