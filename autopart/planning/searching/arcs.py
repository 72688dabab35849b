"""Makes the path problem of a candidate: every stage that fits, with what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.codecs import codecs_of
from autopart.planning.costing.groups import Group, group_devices, link_classes, links_within
from autopart.planning.costing.holding import held_on
from autopart.planning.costing.memory import MemoryTerms, Rules, StageFacts, memory_terms
from autopart.planning.costing.nodes import Home, homes
from autopart.planning.costing.parallel import Times, Way, all_reduce_seconds, layer_times, way_tables, ways
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
from autopart.planning.searching.rooms import in_order, with_rooms
from autopart.planning.searching.updates import Tied, tied_weights, with_late_updates
from autopart.schema.device import Cluster, Link
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
    outward: Crossing
    """without the gradients' way back"""
    tied: Tied
    least_hidden: Floats
    """of every boundary: backward of all layers before it, at least"""

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
        outward=crossing_at(candidate.graph, boundaries, gradients=False, codecs=codecs_of(job, cluster)),
        tied=tied_weights(candidate.graph, boundaries),
        least_hidden=_least_hidden(candidate, groups, offered, boundaries),
    )
    forbidden = forbidden_layers(graph, groups, job)
    parts = [part for number in range(len(groups)) for part in _group_arcs(making, number, forbidden[number])]
    made = Instance(
        num_microbatches=candidate.num_microbatches, schedule=schedule, boundaries=boundaries,
        merged=len(boundaries) < len(set(graph.legal_cuts)) + 2, num_stages=job.stages,
        groups=groups, link_classes=making.classes, ways=offered, arcs=with_late_updates(in_order(parts)),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Costs:
    """Of every stage [a, b] that is run in one way on one group; all but ``once`` of one micro-batch."""

    forward: Floats
    backward: Floats
    compute: Floats
    """both, added up layer by layer"""
    once: Floats
    """optimizer and exchanges, per step"""


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
    widest = 1 if making.links[number][number] is None else making.homes[number].widest
    offered = [index for index, way in enumerate(making.ways) if way.width <= widest]
    times = [
        layer_times(making.candidate, group.device, making.links[number][number], making.ways[index], training=training)
        for index in offered
    ]
    costs = [_costs(making, number, index, each) for index, each in zip(offered, times, strict=True)]
    most = [
        _most_in_flight(
            memory_terms(making.facts[group.device.kind][index], making.rules),
            making.rules, group.device.memory_bytes, num_devices,
        )
        for index in offered
    ]
    banned = running_seconds(tuple(forbidden.astype(float).tolist()), making.boundaries) > 0
    widths = [making.ways[index].width for index in offered]
    kept = _undominated(costs, [np.where(banned, 0, each) for each in most], widths, making.least_hidden)
    return [
        part for index, cost, held, mask in zip(offered, costs, most, kept, strict=True)
        for part in _way_arcs(making, number, index, cost, held, mask)
    ]


def _costs(making: _Making, number: int, way: int, times: Times) -> _Costs:
    forward, backward = (running_seconds(each, making.boundaries) for each in (times.forward, times.backward))
    both = tuple(map(sum, zip(times.forward, times.backward, strict=True)))
    return _Costs(
        forward=forward, backward=backward, compute=running_seconds(both, making.boundaries),
        once=_once_seconds(making, number, times, way),
    )


def _undominated(costs: list[_Costs], most: list[Ints], widths: list[int], least_hidden: Floats) -> list[Bools]:
    """Which stages [a, b] of every way fit, and no way with as few devices is as fast and holds as much.

    What they cost once counts where it is not surely over when the stages before are through.
    """
    order = sorted(range(len(widths)), key=lambda index: widths[index])
    late = [np.maximum(cost.once, least_hidden[:, None]) for cost in costs]
    masks: dict[int, Bools] = {}
    for index in order:
        mask = np.triu(most[index] > 0, k=1)
        for other in masks:
            better = masks[other] & (costs[other].compute <= costs[index].compute) & (most[other] >= most[index])
            better &= (costs[other].forward <= costs[index].forward) & (late[other] <= late[index])
            mask = mask & ~better
        masks[index] = mask
    return [masks[index] for index in range(len(widths))]


def _way_arcs(making: _Making, number: int, way: int, cost: _Costs, most: Ints, mask: Bools) -> list[Arcs]:
    rows, columns = np.nonzero(mask & (cost.compute < making.below_seconds))
    begins = rows == 0
    source, room = max(making.classes) + 1, making.homes[number].widest
    nothing = np.zeros(len(making.boundaries))
    receives = {(source, room): (nothing, nothing)}
    for link_class, room, link in making.links_before(number, making.ways[way].width):
        if link is not None:
            seconds, outward = making.crossing.seconds(link), making.outward.seconds(link)
            known = receives.get((link_class, room), (seconds, outward))
            receives[link_class, room] = np.minimum(known[0], seconds), np.minimum(known[1], outward)
    parts = []
    for (link_class, room), (receive, outward) in receives.items():
        chosen = begins if link_class == source else ~begins
        first, last = rows[chosen], columns[chosen]
        seconds, back = cost.compute[first, last] + receive[first], (receive - outward)[first]
        once, saves = cost.once[first, last], cost.backward[first, last] + back
        if link_class == source:
            weight, update, saves = seconds + once, np.zeros(len(first)), saves + once
        else:
            weight, update = seconds, once
        fixed = {"group": number, "before": link_class, "after": making.classes[number], "way": way,
                 "width": making.ways[way].width, "room": room}
        parts.append(Arcs(
            first=first, last=last, seconds=seconds, weight=weight, update=update, saves=saves,
            most_in_flight=most[first, last],
            **{name: np.full(len(first), value) for name, value in fixed.items()},
        ).keep(seconds < making.below_seconds))
    return parts


def _once_seconds(making: _Making, number: int, times: Times, index: int) -> Floats:
    """Of every stage [a, b]: optimizer, and exchanges of gradients, of tied weights and of replicas.

    The other user's device of a tied weight is not known to the arc, so the cheapest link is charged: a lower bound.
    """
    if not making.rules.training:
        return np.zeros((len(making.boundaries),) * 2)
    once = running_seconds(times.optimizer, making.boundaries)
    way, link = making.ways[index], making.links[number][number]
    if way.data > 1:
        assert link is not None, "several devices need a link"
        trainable = np.asarray(making.facts[making.groups[number].device.kind][index].trainable)
        once = once + all_reduce_seconds(link, way.data, trainable)
    reachable = [link for row in making.links for link in row if link is not None]
    for num_bytes, parted in making.tied if reachable else ():
        once = once + parted * min(link.seconds(2 * num_bytes) for link in reachable)
    return once


def _least_hidden(
    candidate: Candidate, groups: Sequence[Group], offered: Sequence[Way], boundaries: tuple[int, ...]
) -> Floats:
    """The backward of what is before every boundary on the fastest kind, on as many devices as can share a layer."""
    alone = [np.asarray(candidate.profile.kind(g.device.kind).backward_seconds) / g.device.speed for g in groups]
    fastest = np.min(alone, axis=0) / max(way.width for way in offered) * (1 - 1e-9)
    return np.asarray(running_seconds(tuple(fastest.tolist()), boundaries)[0])
