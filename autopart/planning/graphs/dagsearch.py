"""Good placements without contiguity, by tabu search (Glover 1989): the best single move that is not tabu, always.

Moves are judged by the sum of the loads' ``POWER``-th powers, which has a slope where the largest load has none; what
is remembered is the placement with the least largest load.  All moves of all items are evaluated at once: only the
loads of the two devices change, by sums over the item's nets of how many of their items each device holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autopart.planning.graphs.dagproblem import DagProblem, Part

__all__ = ["search"]

POWERS = (6.0, 12.0, 24.0)
"""one per round, in turn: a low power balances all loads, a high one looks at the largest only"""

FAR = 1e6
"""times the largest load: no move that leads so far is made, and its powers are still finite"""

NEARLY = 1.03
"""times the best largest load: what is worth polishing"""

Polish = Callable[[tuple[Part, ...]], tuple[Part, ...]]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def search(
    problem: DagProblem, start: Sequence[Part], *, num_rounds: int, moves_per_round: int, target: float = 0.0,
    out_of_time: Callable[[], bool], seed: int = 0, polish: Polish | None = None,
) -> tuple[Part, ...]:
    """The best placement met from ``start``, which is given back if nothing better is met; same seed, same result.

    Memory caps and what a kind cannot run are kept throughout.  A placement at the target ends the search.  What is
    nearly as good as the best is polished: ``polish`` makes a placement as good as it can, and never worse.
    """
    state = _State(problem, start)
    random = np.random.default_rng(seed)
    best, best_value = state.place.copy(), float(state.load.max())
    if polish is not None:
        best, best_value = state.polished(problem, best, polish)
        state.reset(best)
    for number in range(num_rounds):
        if out_of_time() or best_value <= target:
            break
        if number % 4 == 3:
            state.reset(state.dealt(random, best))
        elif number:
            state.reset(best)
            state.shake(random, 1 + int(random.integers(max(problem.num_items // 4, 1))))
        place, value = _descend(state, POWERS[number % len(POWERS)], moves_per_round, random, out_of_time)
        if polish is not None and value < NEARLY * best_value:
            place, value = state.polished(problem, place, polish)
        if value < best_value * (1 - 1e-12):
            best, best_value = place, value
    return state.parts(best)


def _descend(
    state: _State, power: float, num_moves: int, random: np.random.Generator, out_of_time: Callable[[], bool]
) -> tuple[Ints, float]:
    best, best_value = state.place.copy(), float(state.load.max())
    tabu = np.zeros((state.num_items, state.num_devices), dtype=np.int64)
    for turn in range(num_moves):
        if turn % 64 == 0 and out_of_time():
            break
        score = state.scores(power)
        new_largest = score.min()
        score = np.where(tabu > turn, np.inf, score)
        move = int(np.argmin(score))
        if not np.isfinite(score.flat[move]) or not np.isfinite(new_largest):
            break
        item, device = divmod(move, state.num_devices)
        tabu[item, state.place[item]] = turn + 5 + int(random.integers(10))
        state.move(item, device)
        value = float(state.load.max())
        if value < best_value * (1 - 1e-12):
            best, best_value = state.place.copy(), value
    return best, best_value


class _State:
    """A placement with all sums that single moves need."""

    def __init__(self, problem: DagProblem, start: Sequence[Part]) -> None:
        self.kind = np.repeat(np.arange(len(problem.kinds)), [kind.count for kind in problem.kinds])
        self.num_devices, self.num_items = len(self.kind), problem.num_items
        self.times: Floats = np.array(problem.times)[self.kind].T
        self.factor = np.array([problem.kinds[g].transfer_factor for g in self.kind])
        self.capacity = np.array([problem.kinds[g].capacity_bytes for g in self.kind]) * (1 + 1e-12)
        self.sizes = np.array(problem.sizes)
        self.cost = np.array([net.cost for net in problem.nets])
        self.full = np.array([len(net.pins) for net in problem.nets], dtype=np.int64)
        self.incidence: Floats = np.zeros((problem.num_items, len(problem.nets)))
        for index, net in enumerate(problem.nets):
            self.incidence[list(net.pins), index] = 1
        self.nets_of = [np.flatnonzero(row) for row in self.incidence]
        self.reset(self._devices(problem, start))

    def _devices(self, problem: DagProblem, start: Sequence[Part]) -> Ints:
        free = [list(np.flatnonzero(self.kind == g)) for g in range(len(problem.kinds))]
        place = np.zeros(problem.num_items, dtype=np.int64)
        for part in start:
            place[list(part.items)] = free[part.kind].pop(0)
        return place

    def polished(self, problem: DagProblem, place: Ints, polish: Polish) -> tuple[Ints, float]:
        """A placement made as good as it can be, and its largest load."""
        better = self._devices(problem, polish(self.parts(place)))
        self.reset(better)
        return better, float(self.load.max())

    def reset(self, place: Ints) -> None:
        """Starts from another placement."""
        self.place = place.copy()
        items = np.arange(self.num_items)
        held = np.zeros((self.num_items, self.num_devices))
        held[items, self.place] = 1
        self.pins = np.rint(self.incidence.T @ held).astype(np.int64)
        self.bytes = self.sizes @ held
        cut = (self.pins > 0) & (self.pins < self.full[:, None])
        computing = np.bincount(self.place, weights=self.times[items, self.place], minlength=self.num_devices)
        self.load = computing + self.factor * (self.cost @ cut)
        enter, leave = self._steps(slice(None), slice(None))
        self.enter, self.leave = self.incidence @ enter, self.incidence @ leave

    def _steps(self, nets: slice | Ints, devices: slice | Ints) -> tuple[Floats, Floats]:
        """What a net adds to a device's transfers when one more, or one fewer, of its items is there."""
        pins, full, cost = self.pins[nets][:, devices], self.full[nets][:, None], self.cost[nets][:, None]
        enter = cost * ((pins + 1 < full).astype(float) - (pins > 0))
        leave = cost * ((pins > 1).astype(float) - (pins < full))
        return enter, leave

    def scores(self, power: float) -> Floats:
        """Change of the sum of powers, [item, device]; inf where an item cannot go or already is."""
        items = np.arange(self.num_items)
        scale = max(float(self.load.max()), 1e-300)
        load = self.load / scale
        powers = load**power
        left = self.load[self.place] - self.times[items, self.place] + self._transfer(self.leave)[items, self.place]
        enters = self.load[None, :] + self.times + self._transfer(self.enter)
        change = np.clip(enters / scale, 0.0, FAR) ** power - powers
        change += (np.clip(left / scale, 0.0, FAR) ** power - powers[self.place])[:, None]
        change[self.bytes[None, :] + self.sizes[:, None] > self.capacity] = np.inf
        change[items, self.place] = np.inf
        return np.asarray(np.where(np.isfinite(enters), change, np.inf))

    def _transfer(self, per_device: Floats) -> Floats:
        return np.asarray(per_device * self.factor)

    def move(self, item: int, device: int) -> None:
        """Puts an item on another device."""
        here = int(self.place[item])
        both = np.array([here, device])
        nets = self.nets_of[item]
        self.load[here] += self.factor[here] * self.leave[item, here] - self.times[item, here]
        self.load[device] += self.factor[device] * self.enter[item, device] + self.times[item, device]
        enter, leave = self._steps(nets, both)
        self.pins[nets, here] -= 1
        self.pins[nets, device] += 1
        new_enter, new_leave = self._steps(nets, both)
        touched = self.incidence[:, nets]
        self.enter[:, both] += touched @ (new_enter - enter)
        self.leave[:, both] += touched @ (new_leave - leave)
        self.bytes[here] -= self.sizes[item]
        self.bytes[device] += self.sizes[item]
        self.place[item] = device

    def shake(self, random: np.random.Generator, num_moves: int) -> None:
        """Moves some items to devices that can take them, at random."""
        for _ in range(num_moves):
            item, device = int(random.integers(self.num_items)), int(random.integers(self.num_devices))
            roomy = self.bytes[device] + self.sizes[item] <= self.capacity[device]
            if device != self.place[item] and roomy and np.isfinite(self.times[item, device]):
                self.move(item, device)

    def dealt(self, random: np.random.Generator, fallback: Ints) -> Ints:
        """Runs of consecutive items, each to the device that is done first; the fallback if that does not fit."""
        num_runs = int(random.integers(self.num_devices, max(self.num_items, self.num_devices) + 1))
        starts = np.unique(random.integers(0, self.num_items, size=num_runs))
        place = np.zeros(self.num_items, dtype=np.int64)
        busy, taken = np.zeros(self.num_devices), np.zeros(self.num_devices)
        for run in np.split(np.arange(self.num_items), starts[starts > 0]):
            done = busy + self.times[run].sum(axis=0)
            done[taken + self.sizes[run].sum() > self.capacity] = np.inf
            device = int(np.argmin(done))
            if not np.isfinite(done[device]):
                return fallback
            place[run] = device
            busy[device] = done[device]
            taken[device] += self.sizes[run].sum()
        return place

    def parts(self, place: Ints) -> tuple[Part, ...]:
        """The placement as parts; devices that hold nothing are left out."""
        held = [(int(self.kind[d]), np.flatnonzero(place == d)) for d in range(self.num_devices)]
        return tuple(Part(kind=kind, items=tuple(items.tolist())) for kind, items in held if items.size)
