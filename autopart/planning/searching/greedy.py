"""The greedy type-block plan: devices of a kind side by side, each filled up to the least time that works."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, islice, permutations

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.codecs import codecs_of
from autopart.planning.costing.costs import Layout
from autopart.planning.costing.groups import LinkIndex, group_devices
from autopart.planning.costing.holding import held_by_any
from autopart.planning.costing.memory import MemoryTerms, Rules, memory_terms, num_in_flight
from autopart.planning.costing.parallel import Way, layer_times, usual_way, usual_ways, way_tables
from autopart.planning.costing.tables import Crossing, crossing_at
from autopart.planning.costing.wishes import wished_cuts
from autopart.schema.device import Cluster, Device
from autopart.schema.job import Job, ScheduleName
from autopart.schema.problem import Candidate

__all__ = ["greedy_layouts", "recut"]

MOST_ORDERS = 6
NUM_HALVINGS = 20
MOST_BOUNDARIES = 400
"""above that the memory tables take long: only so many legal cuts are looked at"""


def greedy_layouts(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> list[Layout]:
    """For every order of the kinds (at most six) the layout of the least time limit that greedy filling keeps."""
    orders = islice(permutations(group_devices(cluster)), MOST_ORDERS)
    sequences = [tuple(device for group in order for device in group.devices) for order in orders]
    return recut(candidate, cluster, job, schedule, sequences)


def recut(
    candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName, sequences: Sequence[tuple[Device, ...]]
) -> list[Layout]:
    """For every sequence of devices, where a limit works, the layout of the least limit that greedy filling keeps."""
    cuts = sorted(set(wished_cuts(candidate.graph, job).legal_cuts))
    cuts = cuts[:: -(-len(cuts) // MOST_BOUNDARIES)] if cuts else []
    ends = (0, *cuts, len(candidate.graph.layers))
    rules = Rules.of(job, schedule, candidate.num_microbatches, cluster)
    way = usual_way(job)
    terms = memory_terms(way_tables(held_by_any(candidate), ends, (way,))[0], rules)
    crossing = crossing_at(candidate.graph, ends, gradients=rules.training, codecs=codecs_of(job, cluster))
    layouts, index = [], LinkIndex(cluster)
    for devices in sequences:
        filled = _tightest(candidate, index, devices, ends, terms, rules, crossing, way)
        if filled:
            layouts.append(Layout(
                num_microbatches=candidate.num_microbatches, schedule=schedule, boundaries=filled,
                devices=tuple(device.name for device in devices[: len(filled) - 1]),
                ways=usual_ways(job, len(filled) - 1),
            ))
    return layouts


def _tightest(
    candidate: Candidate, links: LinkIndex, devices: tuple[Device, ...], ends: tuple[int, ...], terms: MemoryTerms,
    rules: Rules, crossing: Crossing, way: Way,
) -> tuple[int, ...]:
    """Boundaries under the least limit that works, () if none does."""
    elapsed, receives = [], []
    for index, device in enumerate(devices):
        times = layer_times(candidate, device, None, way, training=rules.training)
        sums = [0.0, *accumulate(map(sum, zip(times.forward, times.backward, strict=True)))]
        elapsed.append(np.asarray(sums)[list(ends)])
        link = links.between(devices[index - 1], device) if index else None
        none = np.full(len(ends), np.inf if index else 0.0)
        receives.append(none if link is None else crossing.seconds(link))
    best: tuple[int, ...] = ()
    low, high = 0.0, 2 * max(float(each[-1]) for each in elapsed)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        filled = _fill(devices, ends, terms, rules, elapsed, receives, middle)
        best, low, high = (filled, low, middle) if filled else (best, middle, high)
    return best


def _fill(
    devices: tuple[Device, ...], ends: tuple[int, ...], terms: MemoryTerms, rules: Rules,
    elapsed: list[npt.NDArray[np.float64]], receives: list[npt.NDArray[np.float64]], limit: float,
) -> tuple[int, ...]:
    boundaries, begin = [0], 0
    for index, device in enumerate(devices):
        total = terms.total(num_in_flight(rules, len(devices), index))[begin]
        seconds = elapsed[index] - elapsed[index][begin] + receives[index][begin]
        fitting = np.flatnonzero((seconds <= limit) & (total <= device.memory_bytes))
        fitting = fitting[fitting > begin]
        if not len(fitting):
            return ()
        begin = int(fitting[-1])
        boundaries.append(ends[begin])
        if begin == len(ends) - 1:
            return tuple(boundaries)
    return ()
