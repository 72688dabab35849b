"""The arcs of the path program: every stage that fits, with what it costs.

An arc runs from node (first boundary, group before) to node (last boundary, its own group); a plan is a path from
(0, nobody) to (end, any group).  See docs/model.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.groups import Group, group_devices, links_within
from autopart.planning.memory import MemoryTerms, Rules, memory_terms
from autopart.planning.tables import choose_boundaries, facts_table, receive_seconds, running_seconds
from autopart.schema.device import Cluster, Link
from autopart.schema.job import Job, ScheduleName
from autopart.schema.problem import Candidate

__all__ = ["Arcs", "Instance", "build_instance"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arcs:
    """Parallel arrays, sorted by (first, before, last, group); boundaries are indices into the instance's."""

    first: Ints
    last: Ints
    group: Ints
    before: Ints
    """group of the stage before; ``num_groups`` for the first stage"""
    seconds: Floats
    """time of one micro-batch: compute and the incoming boundary"""
    weight: Floats
    """its share of the objective that does not repeat: ``seconds``, for the first stage with the optimizer"""
    most_in_flight: Ints
    """micro-batches in flight that its memory holds; the number of devices if that never binds"""

    def __len__(self) -> int:
        return len(self.first)

    def keep(self, mask: Bools) -> Arcs:
        """The arcs for which the mask is true."""
        return Arcs(**{name: getattr(self, name)[mask] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A path problem: one candidate with one schedule on one cluster."""

    num_microbatches: int
    schedule: ScheduleName
    boundaries: tuple[int, ...]
    merged: bool
    """layers were merged into items: bounds hold for cuts between items only"""
    groups: tuple[Group, ...]
    arcs: Arcs
    num_stages: int | None
    """exactly so many, if set"""
    most_stages: int
    """torch's Schedule1F1B refuses fewer micro-batches than stages"""
    repeats: int
    """how often the largest stage time counts: M - 1, or 0 for latency"""
    floor_seconds: float
    """no plan's largest stage time is below"""

    @property
    def num_groups(self) -> int:
        """Number of groups; as a group index it means the source of the pipeline."""
        return len(self.groups)

    @property
    def end(self) -> int:
        """Index of the last boundary."""
        return len(self.boundaries) - 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Devices per group."""
        return tuple(group.size for group in self.groups)

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return sum(self.counts)


def build_instance(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Instance:
    """The path problem of a candidate; it has no arcs where nothing fits."""
    groups = group_devices(cluster)
    graph = candidate.graph
    seconds = tuple(_layer_seconds(candidate, group, job.mode == "train") for group in groups)
    boundaries = choose_boundaries(graph, np.min(np.asarray(seconds), axis=0))
    rules = Rules.of(job, schedule, candidate.num_microbatches)
    terms = memory_terms(facts_table(graph, boundaries), rules)
    links = links_within(cluster, groups)
    parts = [
        part
        for g, group in enumerate(groups)
        for part in _group_arcs(candidate, group, g, groups, links, boundaries, seconds[g], terms, rules)
    ]
    return Instance(
        num_microbatches=candidate.num_microbatches,
        schedule=schedule,
        boundaries=boundaries,
        merged=len(boundaries) < len(set(graph.legal_cuts)) + 2,
        groups=groups,
        arcs=_sorted(parts),
        num_stages=job.stages,
        most_stages=candidate.num_microbatches if schedule == "1f1b" else len(cluster.devices),
        repeats=0 if job.objective == "latency" else candidate.num_microbatches - 1,
        floor_seconds=_floor_seconds(seconds, groups, boundaries),
    )


def _layer_seconds(candidate: Candidate, group: Group, training: bool) -> tuple[float, ...]:
    kind = candidate.profile.kind(group.device.kind)
    rows = zip(kind.forward_seconds, kind.backward_seconds, strict=True)
    return tuple((forward + (backward if training else 0.0)) / group.device.speed for forward, backward in rows)


def _floor_seconds(
    seconds: tuple[tuple[float, ...], ...], groups: tuple[Group, ...], boundaries: tuple[int, ...]
) -> float:
    """Bound B1: dual of the fractional balance with prices proportional to 1 / total time, and the largest item."""
    table = np.asarray(seconds, dtype=np.float64)
    totals = np.maximum(table.sum(axis=1), 1e-300)
    sizes = np.asarray([group.size for group in groups])
    prices = (1 / totals) / (sizes / totals).sum()
    items = np.add.reduceat(table, boundaries[:-1], axis=1)
    floor = max((prices[:, None] * table).min(axis=0).sum(), items.min(axis=0).max())
    return float(floor) * (1 - 1e-9)


def _most_in_flight(terms: MemoryTerms, rules: Rules, capacity_bytes: int, num_devices: int) -> Ints:
    """Micro-batches in flight that fit, 0 if not even what the schedule needs at least."""
    num = rules.num_microbatches
    if not (rules.training and rules.schedule == "1f1b"):
        return np.where(terms.total(num) <= capacity_bytes, num_devices, 0)
    room = capacity_bytes - terms.fixed()
    most = np.where(terms.per_microbatch > 0, room // np.maximum(terms.per_microbatch, 1), num_devices)
    most = np.where((room >= 0) & (terms.total(1) <= capacity_bytes), most, 0)
    return np.where(most >= num, num_devices, np.minimum(most, num_devices))


def _group_arcs(
    candidate: Candidate, group: Group, number: int, groups: tuple[Group, ...],
    links: tuple[tuple[Link | None, ...], ...], boundaries: tuple[int, ...], seconds: tuple[float, ...],
    terms: MemoryTerms, rules: Rules,
) -> list[Arcs]:
    """The arcs of one group, one part per group that can come before."""
    num_devices = sum(other.size for other in groups)
    compute = running_seconds(seconds, boundaries)
    most = _most_in_flight(terms, rules, group.device.memory_bytes, num_devices)
    rows, columns = np.nonzero(np.triu(most > 0, k=1))
    parts = []
    begins = rows == 0
    once = _once_seconds(candidate, group, number, links, boundaries) if rules.training else np.zeros(len(boundaries))
    for before in range(len(groups)):
        link = links[before][number]
        if link is not None:
            receive = receive_seconds(candidate.graph, link, boundaries, gradients=rules.training)
            chosen = ~begins
            parts.append(_part(rows[chosen], columns[chosen], number, before, compute, receive, most, None))
    no_receive = np.zeros(len(boundaries))
    parts.append(_part(rows[begins], columns[begins], number, len(groups), compute, no_receive, most, once))
    return parts


def _part(
    rows: Ints, columns: Ints, group: int, before: int, compute: Floats, receive: Floats, most: Ints,
    once: Floats | None,
) -> Arcs:
    seconds = compute[rows, columns] + receive[rows]
    return Arcs(
        first=rows, last=columns, group=np.full(len(rows), group), before=np.full(len(rows), before),
        seconds=seconds, weight=seconds if once is None else seconds + once[columns],
        most_in_flight=most[rows, columns],
    )


def _once_seconds(
    candidate: Candidate, group: Group, number: int, links: tuple[tuple[Link | None, ...], ...],
    boundaries: tuple[int, ...],
) -> Floats:
    """Of every first stage, by its last boundary: optimizer, and the exchange of tied weights over the best link.

    The other user's device is not known to the arc, so the best link of the group is charged: a lower bound.
    """
    graph = candidate.graph
    kind = candidate.profile.kind(group.device.kind)
    once = np.concatenate(([0.0], np.cumsum(kind.optimizer_seconds)))[list(boundaries)] / group.device.speed
    reachable = [link for row in links for link in row if link is not None]
    for index, weight in enumerate(graph.weights):
        users = [number for number, layer in enumerate(graph.layers) if index in layer.weights]
        if weight.trainable and not weight.is_buffer and len(users) > 1 and reachable:
            cheapest = min(link.seconds(2 * weight.bytes) for link in reachable)
            parted = [users[0] < boundary <= users[-1] for boundary in boundaries]
            once = once + np.asarray(parted) * cheapest
    return once


def _sorted(parts: list[Arcs]) -> Arcs:
    merged = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Arcs.__slots__}
    order = np.lexsort((merged["group"], merged["last"], merged["before"], merged["first"]))
    return Arcs(**{name: array[order] for name, array in merged.items()})
