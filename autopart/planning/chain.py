"""The chain's dynamic program: exact where the vectors of used devices can be listed, else over some of them.

It gives the integer program its first incumbent, and the tests their oracle.  F[k, h, c] is the least sum of weights of
stages that cover boundaries k .. end, use c[g] devices of every group g, and come after a stage on group h:

    F[end, h, 0] = 0
    F[k, h, c] = min over arcs (k -> j on g after h) of  weight + F[j, g, c - e_g]

The number of stages from here to the end is sum(c), so 1F1B's memory rule needs no state of its own.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.arcs import Arcs, Instance
from autopart.planning.prices import price_arcs

__all__ = ["Path", "best_path", "count_vectors", "is_exact", "path_objective"]

MAX_VECTORS = 600
"""more count vectors than that are not listed in full"""

Path = tuple[int, ...]
"""indices of arcs, from first stage to last"""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def is_exact(counts: tuple[int, ...]) -> bool:
    """Whether all vectors of used devices are gone through."""
    return math.prod(count + 1 for count in counts) <= MAX_VECTORS


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
    """Objective of a path: sum of weights + repeats * largest stage time."""
    chosen = list(path)
    return float(arcs.weight[chosen].sum() + instance.repeats * arcs.seconds[chosen].max())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """F and the arc that attains it, [boundary, group before, vector]; the source has a row of its own."""

    sums: Floats
    choice: Ints


def _fill(instance: Instance, arcs: Arcs, vectors: tuple[tuple[int, ...], ...]) -> _Table:
    num_groups, end = instance.num_groups, instance.end
    position = {vector: index for index, vector in enumerate(vectors)}
    after = _after_one(vectors, position, num_groups)
    sizes = np.asarray([sum(vector) for vector in vectors])
    sums = np.full((end + 1, num_groups + 1, len(vectors) + 1), np.inf)
    choice = np.full((end + 1, num_groups + 1, len(vectors)), -1, dtype=np.int64)
    sums[end, :, position[(0,) * num_groups]] = 0.0
    in_flight = np.minimum(instance.num_microbatches, sizes)
    bound_by_memory = bool(len(arcs)) and bool((arcs.most_in_flight < min(in_flight.max(), sizes.max())).any())
    keys = arcs.first * (num_groups + 1) + arcs.before
    for key in sorted(set(keys.tolist()), reverse=True):
        first, before = divmod(key, num_groups + 1)
        low, high = np.searchsorted(keys, [key, key + 1])
        group, last = arcs.group[low:high], arcs.last[low:high]
        totals = arcs.weight[low:high, None] + sums[last[:, None], group[:, None], after[group]]
        if bound_by_memory:
            totals[arcs.most_in_flight[low:high, None] < in_flight[None, :]] = np.inf
        best = totals.argmin(axis=0)
        sums[first, before, :-1] = totals[best, np.arange(len(vectors))]
        choice[first, before] = low + best
    return _Table(sums=sums, choice=choice)


def _after_one(
    vectors: tuple[tuple[int, ...], ...], position: dict[tuple[int, ...], int], num_groups: int
) -> Ints:
    """Index of every vector less one device of a group; one past the last where that is not listed."""
    after = np.full((num_groups, len(vectors)), len(vectors), dtype=np.int64)
    for index, vector in enumerate(vectors):
        for group in range(num_groups):
            fewer = (*vector[:group], vector[group] - 1, *vector[group + 1 :])
            after[group, index] = position.get(fewer, len(vectors))
    return after


def _walk(instance: Instance, arcs: Arcs, vectors: tuple[tuple[int, ...], ...], table: _Table, vector: int) -> Path:
    position = {vector: index for index, vector in enumerate(vectors)}
    left = list(vectors[vector])
    boundary, before = 0, instance.num_groups
    path = []
    while boundary != instance.end:
        arc = int(table.choice[boundary, before, position[tuple(left)]])
        path.append(arc)
        boundary, before = int(arcs.last[arc]), int(arcs.group[arc])
        left[before] -= 1
    return tuple(path)


def best_path(
    instance: Instance, *, at_least: tuple[int, ...] | None = None, below: float = math.inf, tolerance: float = 1e-6
) -> Path:
    """Arcs (of ``instance.arcs``) of a path with the least objective, or () if there is none below ``below``.

    Least up to ``tolerance`` if ``is_exact``, else merely good.  ``at_least``: devices of every group that it must
    use.  The threshold on the stage time comes down as in ``bounds.prove``.
    """
    search = _Search(instance, _allowed(instance, at_least), below, tolerance)
    highest = float(instance.arcs.seconds.max(initial=1e-9))
    threshold = max(search.floor_seconds, highest * 1e-3) * FIRST_THRESHOLD if instance.repeats else math.inf
    while not search.below(threshold)[0] and threshold <= highest:
        threshold *= FIRST_THRESHOLD
    if not instance.repeats:
        return search.best
    least_sum = price_arcs(instance, instance.arcs, search.target, at_least).bound
    threshold = (search.target - least_sum) / instance.repeats
    while threshold >= search.floor_seconds:
        found, least_sum = search.below(threshold)
        if not found:
            break
        threshold = min(threshold, (search.target - least_sum) / instance.repeats)
    return search.best


FIRST_THRESHOLD = 1.5
"""the first stage time tried is so many times the floor, and so many times more until a plan is found"""


def _allowed(instance: Instance, at_least: tuple[int, ...] | None) -> npt.NDArray[np.bool_]:
    """Which count vectors may be a whole plan's."""
    return np.asarray([
        0 < sum(vector) <= instance.most_stages
        and (instance.num_stages is None or sum(vector) == instance.num_stages)
        and all(used >= need for used, need in zip(vector, at_least or (0,) * len(vector), strict=True))
        for vector in count_vectors(instance.counts)
    ])


@dataclass(slots=True)
class _Search:
    """The best path so far, and what one must be below to be better."""

    instance: Instance
    allowed: npt.NDArray[np.bool_]
    target: float
    tolerance: float
    best: Path = ()

    @property
    def floor_seconds(self) -> float:
        """No plan's largest stage time is below."""
        return self.instance.floor_seconds

    def below(self, threshold: float) -> tuple[bool, float]:
        """Whether any path has only stages below the threshold, and the least sum of weights of one."""
        instance, vectors = self.instance, count_vectors(self.instance.counts)
        mask = instance.arcs.seconds < threshold
        arcs, indices = instance.arcs.keep(mask), np.flatnonzero(mask)
        table = _fill(instance, arcs, vectors)
        totals = np.where(self.allowed, table.sums[0, instance.num_groups, :-1], np.inf)
        vector = int(totals.argmin())
        if not np.isfinite(totals[vector]):
            return False, math.inf
        path = _walk(instance, arcs, vectors, table, vector)
        objective = path_objective(instance, arcs, path)
        if objective < self.target:
            self.best = tuple(int(indices[arc]) for arc in path)
            self.target = objective * (1 - self.tolerance)
        return True, float(totals[vector])
