"""The chain's dynamic program: exact where the vectors of used devices can be listed, else over some of them.

It gives the integer program its first incumbent, and the tests their oracle.  F[k, h, c] is the least sum of weights of
stages that cover boundaries k .. end, use c[g] devices of every group g, and come after a stage of link class h:

    F[end, h, 0] = 0
    F[k, h, c] = min over arcs (k -> j on g after h, r devices) of  weight + F[j, class of g, c - r e_g]

Where optimizers behind the first stage may be the last to end, there is a second table with what those of the suffix
add; each is the least by itself, as in ``network.lengths_of``: its sum is a bound, and the path it leads to a good one.

Where every stage has one device, the number of stages from here to the end is sum(c), so 1F1B's memory rule needs no
state of its own; else the length of the path that attains F is taken, and the program is a heuristic.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.prices import price_arcs
from autopart.planning.searching.updates import latest_sums
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Path", "best_path", "count_vectors", "is_exact", "path_objective"]

MAX_VECTORS = 700
"""more count vectors than that are not listed in full"""

Path = tuple[int, ...]
"""indices of arcs, from first stage to last"""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def is_exact(counts: tuple[int, ...], widest: int = 1) -> bool:
    """Whether all vectors of used devices are gone through, and all stages have one device."""
    return math.prod(count + 1 for count in counts) <= MAX_VECTORS and widest == 1


def count_vectors(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Vectors of used devices, fewest devices first.

    All of them if they are few.  Else those in which the groups follow one another in blocks, the later blocks full,
    for as many orders of the groups as keep them few: a plan of such vectors is a good one, not a proven one.
    """
    if is_exact(counts):
        vectors = set(itertools.product(*(range(count + 1) for count in counts)))
    else:
        vectors = set()
        for order in itertools.permutations(range(len(counts))):
            if len(vectors) > MAX_VECTORS:
                break
            vector = [0] * len(counts)
            vectors.add(tuple(vector))
            for group in order:
                for _ in range(counts[group]):
                    vector[group] += 1
                    vectors.add(tuple(vector))
    return tuple(sorted(vectors, key=lambda vector: (sum(vector), vector)))


def path_objective(instance: Instance, arcs: Arcs, path: Path) -> float:
    """Objective of a path: sum of weights with what late optimizers add + repeats * largest stage time."""
    return arcs.sum_along(path) + instance.repeats * float(arcs.seconds[list(path)].max())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """F, the arc that attains it and the stages of its path, [which, boundary, class before, vector].

    The source has a row.  ``which``: of weights alone, and with what late optimizers add, where there are such.
    """

    sums: Floats
    choice: Ints
    lengths: Ints


def _fill(
    instance: Instance, arcs: Arcs, vectors: tuple[tuple[int, ...], ...], out_of_time: IsOver
) -> _Table | None:
    """The whole table; None if there is no time for it."""
    num_classes, end = instance.num_classes, instance.end
    position = {vector: index for index, vector in enumerate(vectors)}
    after = _after(vectors, position, instance)
    shape = (1 + arcs.are_late, end + 1, num_classes + 1, len(vectors) + 1)
    sums, lengths = np.full(shape, np.inf), np.zeros(shape, dtype=np.int64)
    choice = np.full((*shape[:-1], len(vectors)), -1, dtype=np.int64)
    sums[:, end, :, position[(0,) * instance.num_groups]] = 0.0
    most = min(instance.num_microbatches, instance.num_devices)
    bound_by_memory = bool(len(arcs)) and bool((arcs.most_in_flight < most).any())
    width, size = num_classes + 1, len(vectors) + 1
    keys, rows = arcs.first * width + arcs.before, (arcs.last * width + arcs.after) * size
    flat_sums, flat_lengths = sums.reshape(len(sums), -1), lengths.reshape(len(sums), -1)
    every = np.arange(len(vectors))
    for key in np.unique(keys)[::-1].tolist():
        if out_of_time():
            return None
        first, before = divmod(key, width)
        low, high = np.searchsorted(keys, [key, key + 1])
        where = rows[low:high, None] + after[arcs.group[low:high], arcs.width[low:high]]
        some = slice(low, high)
        behind, stages = flat_sums.take(where, axis=1), flat_lengths.take(where, axis=1)
        for which, totals in enumerate(_totals(arcs, some, behind)):
            follow = stages[0] if not which else np.where(_is_behind(arcs, some, behind), stages[1], stages[0])
            if bound_by_memory:
                in_flight = np.minimum(instance.num_microbatches, follow + 1)
                totals[arcs.most_in_flight[low:high, None] < in_flight] = np.inf
            best = totals.argmin(axis=0)
            sums[which, first, before, :-1] = totals[best, every]
            choice[which, first, before] = low + best
            lengths[which, first, before, :-1] = follow[best, every] + 1
    return _Table(sums=sums, choice=choice, lengths=lengths)


def _totals(arcs: Arcs, some: slice, behind: Floats) -> Floats:
    """The sums [which, arc, vector] of some arcs and what is behind them."""
    weight = arcs.weight[some, None]
    if len(behind) == 1:
        return behind + weight
    latest = latest_sums(weight, arcs.update[some, None], arcs.saves[some, None], *behind)
    return np.stack([behind[0] + weight, latest])


def _is_behind(arcs: Arcs, some: slice, behind: Floats) -> npt.NDArray[np.bool_]:
    """Whether the optimizer that ends last is behind these arcs, not theirs."""
    return np.asarray(behind[1] - arcs.saves[some, None] > behind[0] + arcs.update[some, None])


def _after(
    vectors: tuple[tuple[int, ...], ...], position: dict[tuple[int, ...], int], instance: Instance
) -> Ints:
    """Entry [g, r, v]: the vector v less r devices of group g; one past the last where that is not listed."""
    widths = sorted({way.width for way in instance.ways})
    after = np.full((instance.num_groups, widths[-1] + 1, len(vectors)), len(vectors), dtype=np.int64)
    for index, vector in enumerate(vectors):
        for group in range(instance.num_groups):
            for width in widths:
                fewer = (*vector[:group], vector[group] - width, *vector[group + 1 :])
                after[group, width, index] = position.get(fewer, len(vectors))
    return after


def _walk(instance: Instance, arcs: Arcs, vectors: tuple[tuple[int, ...], ...], table: _Table, vector: int) -> Path:
    position = {vector: index for index, vector in enumerate(vectors)}
    left = list(vectors[vector])
    boundary, before, which = 0, instance.num_classes, len(table.sums) - 1
    path = []
    while boundary != instance.end:
        arc = int(table.choice[which, boundary, before, position[tuple(left)]])
        path.append(arc)
        boundary, before = int(arcs.last[arc]), int(arcs.after[arc])
        left[int(arcs.group[arc])] -= int(arcs.width[arc])
        if which:
            behind = table.sums[:, boundary, before, position[tuple(left)]]
            which = int(_is_behind(arcs, slice(arc, arc + 1), behind[:, None, None])[0, 0])
    return tuple(path)


def best_path(
    instance: Instance, *, at_least: tuple[int, ...] | None = None, below: float = math.inf, tolerance: float = 1e-6,
    banned: frozenset[tuple[int, ...]] = frozenset(), out_of_time: IsOver = never,
) -> Path:
    """Arcs (of ``instance.arcs``) of a path with the least objective, or () if there is none below ``below``.

    Least up to ``tolerance`` if ``is_exact`` and no optimizer is late, else merely good; that there is none at all is
    certain if ``is_exact``.  Once ``out_of_time``, the best met so far.
    ``at_least``: devices of every group that it must use; ``banned``: vectors of used devices that it must not.  The
    threshold on the stage time comes down as in ``bounds.prove``.
    """
    search = _Search(instance, _allowed(instance, at_least, banned), below, tolerance, out_of_time)
    highest = float(instance.arcs.seconds.max(initial=0.0)) or 1e-9  # zeros: layers that are nothing but views
    threshold = max(search.floor_seconds, highest * 1e-3) * FIRST_THRESHOLD if instance.repeats else math.inf
    while not search.below(threshold)[0] and threshold <= highest and not out_of_time():
        threshold *= FIRST_THRESHOLD
    if not instance.repeats or out_of_time():
        return search.best
    low, high = max(search.floor_seconds, highest * 1e-6), threshold
    while search.best and high > low * max(NARROW, 1 + tolerance) and not out_of_time():
        middle = math.sqrt(low * high)
        low, high = (low, middle) if search.below(middle)[0] else (middle, high)
    least_sum = price_arcs(instance, instance.arcs, search.target, at_least, out_of_time=out_of_time).bound
    threshold = (search.target - least_sum) / instance.repeats
    while threshold >= search.floor_seconds and not out_of_time():
        found, least_sum = search.below(threshold)
        lower = (search.target - least_sum) / instance.repeats
        if not found or lower >= threshold:  # late optimizers: a bound need not have a path
            break
        threshold = lower
    return search.best


MANY_STEPS = 2_000_000
"""arcs times count vectors, above which arcs that no better path contains are dropped first"""
NUM_ROUNDS = 16

NARROW = 1.002
"""how closely the least threshold that has a path is looked for before thresholds come down from above"""

FIRST_THRESHOLD = 1.3
"""the first stage time tried is so many times the floor, and so many times more until a plan is found"""


def _allowed(
    instance: Instance, at_least: tuple[int, ...] | None, banned: frozenset[tuple[int, ...]]
) -> npt.NDArray[np.bool_]:
    """Which count vectors may be a whole plan's."""
    least, prices = at_least or (0,) * instance.num_groups, instance.prices
    return np.asarray([
        sum(vector) > 0
        and vector not in banned
        and all(used >= need for used, need in zip(vector, least, strict=True))
        and (not prices or float(np.dot(vector, prices)) <= instance.budget * (1 + 1e-9))
        for vector in count_vectors(instance.counts)
    ])


@dataclass(slots=True)
class _Search:
    """The best path so far, and what one must be below to be better."""

    instance: Instance
    allowed: npt.NDArray[np.bool_]
    target: float
    tolerance: float
    out_of_time: IsOver
    best: Path = ()

    @property
    def floor_seconds(self) -> float:
        """No plan's largest stage time is below."""
        return self.instance.floor_seconds

    def below(self, threshold: float) -> tuple[bool, float]:
        """Whether any path has only stages below the threshold, and the least sum of weights of one.

        Out of time, it is said that there is none.
        """
        instance, vectors = self.instance, count_vectors(self.instance.counts)
        indices = np.flatnonzero(instance.arcs.seconds < threshold)
        arcs = instance.arcs.keep(instance.arcs.seconds < threshold)
        cutoff = self.target - instance.repeats * self.floor_seconds
        if len(arcs) * len(vectors) > MANY_STEPS and np.isfinite(cutoff):
            priced = price_arcs(instance, arcs, cutoff, None, num_rounds=NUM_ROUNDS, out_of_time=self.out_of_time)
            useful = priced.through < cutoff
            arcs, indices = arcs.keep(useful), indices[useful]
        table = _fill(instance, arcs, vectors, self.out_of_time)
        if table is None:
            return False, math.inf
        totals = np.where(self.allowed, table.sums[-1, 0, instance.num_classes, :-1], np.inf)
        lengths = table.lengths[-1, 0, instance.num_classes, :-1]
        wanted = instance.num_stages is None or lengths == instance.num_stages
        totals = np.where((lengths <= instance.most_stages) & wanted, totals, np.inf)
        vector = int(totals.argmin())
        if not np.isfinite(totals[vector]):
            return False, math.inf
        path = _walk(instance, arcs, vectors, table, vector)
        objective = path_objective(instance, arcs, path)
        if objective < self.target:
            self.best = tuple(int(indices[arc]) for arc in path)
            self.target = objective * (1 - self.tolerance)
        return True, float(totals[vector])
