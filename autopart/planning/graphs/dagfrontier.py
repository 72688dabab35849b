"""What items a device can hold at most, transfers included: a dynamic program along an order of the items.

Items are decided one after the other: in or out.  Of what was decided before, only the *frontier* matters: for every
net of which some items are decided and some are not, whether all so far are in, all are out, or the net is cut and
paid.  Graphs of models are long and thin, so that there are few frontiers.  Where there are too many, the cheapest
open nets are forgotten, whose cost is then left out: what is found is a relaxation, and a bound stays one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopart.planning.graphs.dagproblem import DagProblem, Net
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Filling", "Frontier", "fill", "frontier_along", "narrow_frontier"]

MOST_STATES = 128
"""frontiers at one place"""
MOST_NEAR = 16
"""items of a net, above which they are not neighbours"""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """Ways from frontiers before an item to different frontiers behind it."""

    taken: bool
    fresh: bool
    """no layer before leads to one of these targets"""
    source: Ints
    target: Ints
    paid: Floats
    """cost of the nets that are cut by this"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """All ways to decide the items, one after the other."""

    order: tuple[int, ...]
    steps: tuple[tuple[_Layer, ...], ...]
    num_states: tuple[int, ...]
    """behind each item"""
    forgotten: float
    """cost of the nets that were forgotten"""

    @property
    def size(self) -> int:
        """States of all places together."""
        return sum(self.num_states)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """The best sets of items, by price and by size."""

    best: Floats
    """[price row, size]: the most that a set of so many units is worth; -inf if there is none"""
    frontier: Frontier
    units: Ints
    """of time per item, rounded down"""
    choices: tuple[NDArray[np.uint8], ...]

    def items(self, row: int, size: int) -> tuple[int, ...]:
        """A set that attains ``best[row, size]``."""
        state, held = 0, []
        steps = zip(self.frontier.order, self.frontier.steps, self.choices, strict=True)
        for item, layers, choice in reversed(list(steps)):
            layer = layers[int(choice[state, row, size])]
            state = int(layer.source[np.flatnonzero(layer.target == state)[0]])
            if layer.taken:
                held.append(item)
                size -= int(self.units[item])
        return tuple(sorted(held))


def fill(
    frontier: Frontier, units: Ints, worth: Floats, fee: Floats, num_units: int, *, out_of_time: IsOver = never
) -> Filling | None:
    """The best sets of every size up to ``num_units``; None if the time ran out.

    Args:
        frontier: of the nets that count.
        units: size of every item; what is larger than ``num_units`` cannot be held.
        worth: [price row, item], may be negative.
        fee: [price row], taken off per cost of a net that is cut.
        num_units: the largest size.
        out_of_time: ends it.
    """
    rows = len(fee)
    values = np.full((1, rows, num_units + 1), -np.inf)
    values[0, :, 0] = 0.0
    choices = []
    for at, (item, layers) in enumerate(zip(frontier.order, frontier.steps, strict=True)):
        if at % 16 == 0 and out_of_time():
            return None
        after = np.full((frontier.num_states[at], rows, num_units + 1), -np.inf)
        choice = np.zeros(after.shape, dtype=np.uint8)
        for number, layer in enumerate(layers):
            size = int(units[item]) if layer.taken else 0
            if size > num_units:
                continue
            gain = (worth[:, item] if layer.taken else 0.0) - fee * layer.paid[:, None]
            found = values[layer.source, :, : num_units + 1 - size] + gain[:, :, None]
            if layer.fresh:
                after[layer.target, :, size:] = found
                choice[layer.target, :, size:] = number
                continue
            old = after[layer.target, :, size:]
            better = found > old
            after[layer.target, :, size:] = np.where(better, found, old)
            choice[layer.target, :, size:] = np.where(better, number, choice[layer.target, :, size:])
        values = after
        choices.append(choice)
    return Filling(best=values[0], frontier=frontier, units=units, choices=tuple(choices))


class _Open:
    """The nets that are open, as bits: some of their items are decided, and some are not."""

    def __init__(self, nets: Sequence[Net], order: Sequence[int]) -> None:
        self.costs = [net.cost for net in nets]
        self.known = (1 << len(nets)) - 1
        """not forgotten"""
        self.of = [0] * len(order)
        self.closing = [0] * len(order)
        self.nets = 0
        self.forgotten = 0.0
        place = {item: at for at, item in enumerate(order)}
        for number, net in enumerate(nets):
            for pin in net.pins:
                self.of[pin] |= 1 << number
            self.closing[max(net.pins, key=lambda pin: place[pin])] |= 1 << number

    def decide(self, item: int) -> tuple[int, int]:
        """Goes behind an item; its nets that were open before, and those that it is the first of."""
        mine = self.of[item] & self.known
        before = self.nets
        self.nets = (before | mine) & ~self.closing[item]
        return mine & before, mine & ~before

    def cost(self, nets: int) -> float:
        """Sum over these."""
        return math.fsum(self.costs[number] for number in _bits(nets))

    def forget_cheapest(self) -> None:
        """Does without the net whose cost matters least."""
        number = min(_bits(self.nets), key=lambda each: self.costs[each])
        self.known &= ~(1 << number)
        self.nets &= self.known
        self.forgotten += self.costs[number]


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def frontier_along(
    order: Sequence[int], nets: Sequence[Net], *, most_forgotten: float = math.inf, out_of_time: IsOver = never
) -> Frontier | None:
    """All frontiers along an order; None if the time ran out, or if it takes to forget nets of more than this cost.

    A frontier is (nets of which all decided items are in, nets that are cut), both bit sets of open nets.
    """
    here = _Open(nets, order)
    states: list[tuple[int, int]] = [(0, 0)]
    steps: list[tuple[_Layer, ...]] = []
    sizes: list[int] = []
    for item in order:
        known, opening = here.decide(item)
        ways = [way for source, state in enumerate(states) for way in _ways(source, state, known, opening)]
        while len({(full & here.nets, cut & here.nets) for _, _, _, full, cut in ways}) > MOST_STATES:
            here.forget_cheapest()
        if here.forgotten > most_forgotten or out_of_time():
            return None
        number: dict[tuple[int, int], int] = {}
        steps.append(_layers([
            (source, taken, here.cost(newly), number.setdefault((full & here.nets, cut & here.nets), len(number)))
            for source, taken, newly, full, cut in ways
        ]))
        states = list(number)
        sizes.append(len(number))
    return Frontier(order=tuple(order), steps=tuple(steps), num_states=tuple(sizes), forgotten=here.forgotten)


def _ways(source: int, state: tuple[int, int], known: int, opening: int) -> Iterator[tuple[int, bool, int, int, int]]:
    """(source, taken, nets newly cut, nets all in, nets cut) for an item that is out, and in."""
    full, cut = state
    newly = known & full
    yield source, False, newly, full & ~newly, cut | newly
    newly = known & ~full & ~cut
    yield source, True, newly, full | opening, cut | newly


def _layers(rows: Sequence[tuple[int, bool, float, int]]) -> tuple[_Layer, ...]:
    """The ways, in layers in which every target is there once."""
    seen: dict[int, int] = {}
    groups: dict[tuple[bool, int], list[tuple[int, float, int]]] = {}
    for taken in (False, True):
        for source, _, paid, target in (row for row in rows if row[1] == taken):
            rank = seen.get(target, 0)
            seen[target] = rank + 1
            groups.setdefault((taken, rank), []).append((source, paid, target))
    return tuple(
        _Layer(
            taken=taken, fresh=not rank, source=np.array([row[0] for row in group]),
            paid=np.array([row[1] for row in group]), target=np.array([row[2] for row in group]),
        )
        for (taken, rank), group in groups.items()
    )


def narrow_frontier(problem: DagProblem, nets: Sequence[Net], *, out_of_time: IsOver = never) -> Frontier | None:
    """The frontier of the nets along the best of some orders: the given one, and those grown from its ends.

    None if the time ran out.
    """
    given = tuple(range(problem.num_items))
    best = frontier_along(given, nets, out_of_time=out_of_time)
    for start in dict.fromkeys((given[0], given[-1])) if nets else ():
        if best is None:
            return None
        order = _grown(problem, start)
        found = frontier_along(order, nets, most_forgotten=best.forgotten, out_of_time=out_of_time)
        if found is not None and (found.forgotten, found.size) < (best.forgotten, best.size):
            best = found
    return best


def _grown(problem: DagProblem, start: int) -> tuple[int, ...]:
    """From one item on, always the one that opens fewest nets more than it closes; the earliest reached of those."""
    of: list[list[int]] = [[] for _ in range(problem.num_items)]
    for number, net in enumerate(problem.nets):
        for pin in net.pins:
            of[pin].append(number)
    left = [len(net.pins) for net in problem.nets]
    reached = {start: 0}
    rest = dict.fromkeys(range(problem.num_items))
    order: list[int] = []
    while rest:
        if not reached:
            reached[next(iter(rest))] = len(order)
        item = min(reached, key=lambda each: (_opens(problem, of[each], left), reached[each], each))
        del reached[item], rest[item]
        order.append(item)
        for number in of[item]:
            left[number] -= 1
            pins = problem.nets[number].pins
            for pin in pins if len(pins) <= MOST_NEAR else ():
                if pin in rest:
                    reached.setdefault(pin, len(order))
    return tuple(order)


def _opens(problem: DagProblem, nets: Sequence[int], left: Sequence[int]) -> int:
    """Nets that an item opens, less those that it closes."""
    return sum((left[number] == len(problem.nets[number].pins)) - (left[number] == 1) for number in nets)
