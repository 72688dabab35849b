"""Makes the path problem of a candidate: every stage that fits, with what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.codecs import codecs_of
from autopart.planning.costing.groups import Group, group_devices, link_classes, links_within
from autopart.planning.costing.holding import held_on
from autopart.planning.costing.memory import MemoryTerms, Rules, StageFacts, memory_terms
from autopart.planning.costing.nodes import Home, homes
from autopart.planning.costing.parallel import Times, Way, gradient_seconds, layer_times, way_tables, ways
from autopart.planning.costing.tables import (
    MAX_BOUNDARIES,
    Crossing,
    choose_boundaries,
    crossing_at,
    running_seconds,
)
from autopart.planning.costing.wishes import apart_devices, forbidden_layers, wished_cuts
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.periods import with_periods
from autopart.planning.searching.rooms import with_rooms
from autopart.schema.device import Cluster, Link
from autopart.schema.graph import Graph
from autopart.schema.job import Job, ScheduleName
from autopart.schema.problem import Candidate

__all__ = ["build_instance"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Links = tuple[tuple[Link | None, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """What all arcs of an instance are made from."""

    candidate: Candidate
    job: Job
    groups: tuple[Group, ...]
    homes: tuple[Home, ...]
    links: Links
    classes: tuple[int, ...]
    boundaries: tuple[int, ...]
    facts: Mapping[str, tuple[StageFacts, ...]]
    """by kind and every way"""
    rules: Rules
    ways: tuple[Way, ...]
    below_seconds: float
    crossing: Crossing
    parted: tuple[tuple[int, Bools], ...]
    """bytes of every tied weight, and whether a first stage that ends at each boundary has only some of its users"""

    def links_before(self, number: int, width: int) -> Iterator[tuple[int, int, Link | None]]:
        """Link class, room and link of every way to a stage so wide on a group; see ``Arcs.room``.

        From a stage of its own group it is reached on the same node, unless it fills that, or from another one.
        """
        home, is_scattered = self.homes[number], self.is_scattered(number)
        for before, link_class in enumerate(self.classes):
            if before == number and is_scattered:
                yield link_class, home.widest, home.beyond
                if width < home.widest:
                    yield link_class, 0, self.links[number][number]
            elif before != number or width < home.widest:
                yield link_class, home.widest, self.links[before][number]

    def is_scattered(self, number: int) -> bool:
        """Whether a group stands on several nodes."""
        return self.homes[number].widest < self.groups[number].size


def build_instance(
    candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName, *,
    limit: int = MAX_BOUNDARIES, below_seconds: float = np.inf, real: Cluster | None = None,
) -> Instance:
    """The path problem of a candidate, without stages of ``below_seconds`` or more; no arcs where nothing fits.

    ``real``: the cluster as it is, where the nodes of the one planned for are merged.
    """
    groups = group_devices(cluster, apart_devices(job, cluster))
    stand = homes(cluster if real is None else real, groups, apart_devices(job, cluster))
    graph = wished_cuts(candidate.graph, job)
    links = links_within(cluster, groups)
    offered = ways(job, graph.batch_size, max(home.widest for home in stand))
    fastest = np.min([_alone(candidate, group, job) for group in groups], axis=0)
    boundaries = choose_boundaries(graph, fastest, limit)
    making = _Making(
        candidate=candidate, job=job, groups=groups, homes=stand, links=links, classes=link_classes(groups, links),
        boundaries=boundaries, facts=_facts(candidate, groups, boundaries, offered),
        rules=Rules.of(job, schedule, candidate.num_microbatches, cluster), ways=offered, below_seconds=below_seconds,
        crossing=crossing_at(
            candidate.graph, boundaries, gradients=job.mode == "train", codecs=codecs_of(job, cluster)
        ),
        parted=_parted(candidate.graph, boundaries),
    )
    forbidden = forbidden_layers(graph, groups, job)
    parts = [part for number in range(len(groups)) for part in _group_arcs(making, number, forbidden[number])]
    made = Instance(
        num_microbatches=candidate.num_microbatches, schedule=schedule, boundaries=boundaries,
        merged=len(boundaries) < len(set(graph.legal_cuts)) + 2, num_stages=job.stages,
        groups=groups, link_classes=making.classes, ways=offered, arcs=_sorted(parts),
        most_stages=candidate.num_microbatches if schedule == "1f1b" else len(cluster.devices),
        cluster=cluster, repeats=0 if job.objective == "latency" else candidate.num_microbatches - 1,
        floor_seconds=_floor_seconds(making), budget=job.max_usd_per_hour or 0.0,
        alone_seconds=tuple(float(_alone(candidate, group, job).sum()) for group in groups),
        prices=tuple(group.rent_usd_per_hour for group in groups) if job.max_usd_per_hour else (),
        scattered=tuple(number for number in range(len(groups)) if making.is_scattered(number)),
    )
    made = with_rooms(made, stand)
    if schedule != "1f1b" or not made.repeats:
        return made
    charged = with_periods(made, making.crossing, links, stand)
    return replace(charged, arcs=charged.arcs.keep(charged.arcs.seconds < below_seconds))


def _facts(
    candidate: Candidate, groups: tuple[Group, ...], boundaries: tuple[int, ...], offered: tuple[Way, ...]
) -> dict[str, tuple[StageFacts, ...]]:
    """By kind: kinds that compute in other types hold other amounts of bytes."""
    dtypes = {kind: candidate.profile.kind(kind).dtype for kind in {group.device.kind for group in groups}}
    tables = {
        dtype: way_tables(held_on(candidate, kind), boundaries, offered)
        for dtype, kind in {dtype: kind for kind, dtype in dtypes.items()}.items()
    }
    return {kind: tables[dtype] for kind, dtype in dtypes.items()}


def _alone(candidate: Candidate, group: Group, job: Job) -> Floats:
    kind = candidate.profile.kind(group.device.kind)
    backward = np.asarray(kind.backward_seconds) if job.mode == "train" else 0.0
    return np.asarray((np.asarray(kind.forward_seconds) + backward) / group.device.speed)


def _floor_seconds(making: _Making) -> float:
    """Bound B1: dual of the fractional balance with prices proportional to 1 / total time, and the largest item.

    A group of devices never does more per device than one alone, so the balance holds for all ways.
    """
    table = np.asarray([_alone(making.candidate, group, making.job) for group in making.groups])
    totals = np.maximum(table.sum(axis=1), 1e-300)
    sizes = np.asarray([group.size for group in making.groups])
    prices = (1 / totals) / (sizes / totals).sum()
    items = np.add.reduceat(table, making.boundaries[:-1], axis=1).min(axis=0)
    widest = max(way.width for way in making.ways)
    floor = max((prices[:, None] * table).min(axis=0).sum(), items.max() / widest)
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


def _group_arcs(making: _Making, number: int, forbidden: Bools) -> list[Arcs]:
    """The arcs of one group, one part per way and link class that can come before."""
    group, training = making.groups[number], making.rules.training
    num_devices = sum(other.size for other in making.groups)
    offered = [index for index, way in enumerate(making.ways) if way.width <= making.homes[number].widest]
    times = [
        layer_times(making.candidate, group.device, making.links[number][number], making.ways[index], training=training)
        for index in offered
    ]
    sums = [tuple(map(sum, zip(each.forward, each.backward, strict=True))) for each in times]
    compute = [running_seconds(each, making.boundaries) for each in sums]
    most = [
        _most_in_flight(
            memory_terms(making.facts[group.device.kind][index], making.rules),
            making.rules, group.device.memory_bytes, num_devices,
        )
        for index in offered
    ]
    banned = running_seconds(tuple(forbidden.astype(float).tolist()), making.boundaries) > 0
    kept = _undominated(compute, [np.where(banned, 0, each) for each in most], [making.ways[i].width for i in offered])
    parts = []
    for index, each, seconds, mask in zip(offered, times, compute, kept, strict=True):
        once = _once_seconds(making, number, each, index)
        parts += _way_arcs(making, number, index, seconds, most[offered.index(index)], mask, once)
    return parts


def _undominated(compute: list[Floats], most: list[Ints], widths: list[int]) -> list[Bools]:
    """Which stages [a, b] of every way fit, and no way with as few devices is as fast and holds as much.

    First stages all stay: ways differ in what they cost once.
    """
    order = sorted(range(len(widths)), key=lambda index: widths[index])
    masks: dict[int, Bools] = {}
    for index in order:
        mask = np.triu(most[index] > 0, k=1)
        for other in masks:
            better = masks[other] & (compute[other] <= compute[index]) & (most[other] >= most[index])
            better[0] = False
            mask = mask & ~better
        masks[index] = mask
    return [masks[index] for index in range(len(widths))]


def _way_arcs(
    making: _Making, number: int, way: int, compute: Floats, most: Ints, mask: Bools, once: Floats
) -> list[Arcs]:
    rows, columns = np.nonzero(mask & (compute < making.below_seconds))
    begins = rows == 0
    source, room = max(making.classes) + 1, making.homes[number].widest
    receives = {(source, room): np.zeros(len(making.boundaries))}
    for link_class, room, link in making.links_before(number, making.ways[way].width):
        if link is not None:
            seconds = making.crossing.seconds(link)
            receives[link_class, room] = np.minimum(receives.get((link_class, room), seconds), seconds)
    parts = []
    for (link_class, room), receive in receives.items():
        chosen = begins if link_class == source else ~begins
        first, last = rows[chosen], columns[chosen]
        seconds = compute[first, last] + receive[first]
        fixed = {"group": number, "before": link_class, "after": making.classes[number], "way": way,
                 "width": making.ways[way].width, "room": room}
        parts.append(Arcs(
            first=first, last=last, seconds=seconds,
            weight=seconds + once[last] if link_class == source else seconds, most_in_flight=most[first, last],
            **{name: np.full(len(first), value) for name, value in fixed.items()},
        ).keep(seconds < making.below_seconds))
    return parts


def _once_seconds(making: _Making, number: int, times: Times, index: int) -> Floats:
    """Of every first stage, by its last boundary: optimizer, and exchanges of gradients, of tied weights and replicas.

    The other user's device of a tied weight is not known to the arc, so the cheapest link is charged: a lower bound.
    """
    if not making.rules.training:
        return np.zeros(len(making.boundaries))
    once = np.concatenate(([0.0], np.cumsum(times.optimizer)))[list(making.boundaries)]
    way, link = making.ways[index], making.links[number][number]
    if way.data > 1:
        sizes = making.facts[making.groups[number].device.kind][index].trainable[0].tolist()
        once = once + np.asarray([gradient_seconds(link, way, size) for size in sizes])
    reachable = [link for row in making.links for link in row if link is not None]
    for num_bytes, parted in making.parted if reachable else ():
        once = once + parted * min(link.seconds(2 * num_bytes) for link in reachable)
    return once


def _parted(graph: Graph, boundaries: tuple[int, ...]) -> tuple[tuple[int, Bools], ...]:
    users: dict[int, list[int]] = {}
    for position, layer in enumerate(graph.layers):
        for index in sorted(set(layer.weights)):
            users.setdefault(index, []).append(position)
    ends = np.asarray(boundaries)
    tied = ((graph.weights[index], at) for index, at in sorted(users.items()) if len(at) > 1)
    return tuple(
        (weight.bytes, (at[0] < ends) & (ends <= at[-1]))
        for weight, at in tied if weight.trainable and not weight.is_buffer
    )


def _sorted(parts: list[Arcs]) -> Arcs:
    merged = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Arcs.__slots__}
    order = np.lexsort((merged["way"], merged["group"], merged["last"], merged["before"], merged["first"]))
    return Arcs(**{name: array[order] for name, array in merged.items()})
