"""What a layout costs: every stage's times, by adding up its layers, and the objective of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest

from autopart.planning.costing.codecs import Codec, codecs_of, sent
from autopart.planning.costing.groups import link_between
from autopart.planning.costing.holding import held_on
from autopart.planning.costing.memory import Rules, stage_memory
from autopart.planning.costing.onedevice import in_flight_of, together
from autopart.planning.costing.parallel import ALONE, Way, gradient_seconds, layer_times, way_facts
from autopart.planning.costing.remembering import per_graph
from autopart.schema.device import Cluster, Device
from autopart.schema.graph import Graph
from autopart.schema.job import Job, ScheduleName
from autopart.schema.plan import Memory
from autopart.schema.problem import Candidate
from autopart.units import format_bytes

__all__ = ["Layout", "StageCost", "layout_costs", "misfit", "objective_seconds", "short_bytes", "updates_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A way to place the model: stage s runs layers boundaries[s] .. boundaries[s + 1] - 1 on devices[s]."""

    num_microbatches: int
    schedule: ScheduleName
    boundaries: tuple[int, ...]
    devices: tuple[str, ...]
    """of a stage on several devices the first"""
    ways: tuple[Way, ...] = ()
    """() if every stage runs on one device, and none recomputes"""
    others: tuple[tuple[str, ...], ...] = ()
    """per stage, its devices but the first; () if all have one"""

    def __post_init__(self) -> None:
        assert len(self.boundaries) == len(self.devices) + 1, "a stage per device"
        assert list(self.boundaries) == sorted(set(self.boundaries)), "boundaries ascend"

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.devices)

    def way(self, index: int) -> Way:
        """How a stage is run."""
        return self.ways[index] if self.ways else ALONE

    def devices_of(self, index: int) -> tuple[str, ...]:
        """All devices of a stage."""
        return (self.devices[index], *(self.others[index] if self.others else ()))

    @property
    def used(self) -> tuple[str, ...]:
        """All devices of all stages, each once."""
        return tuple(dict.fromkeys(name for index in range(self.num_stages) for name in self.devices_of(index)))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of every stage: devices, numbered in the order of their first stages."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.devices))}
        return tuple(numbers[name] for name in self.devices)

    @property
    def stages(self) -> tuple[tuple[int, int, str], ...]:
        """(first layer, one past the last, device) of every stage."""
        return tuple(zip(self.boundaries, self.boundaries[1:], self.devices, strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Times of one stage; all but the optimizer's are of one micro-batch."""

    forward_seconds: float
    backward_seconds: float
    receive_seconds: float
    """the values of its first boundary"""
    return_seconds: float
    """their gradients' way back to the stage before"""
    optimizer_seconds: float
    """once per step, with the exchange of tied weights' gradients"""
    exchanges_with: tuple[int, ...]
    memory: Memory
    capacity_bytes: int

    @property
    def stage_seconds(self) -> float:
        """What one micro-batch occupies the stage for: computing, and its incoming boundary in both directions."""
        return self.forward_seconds + self.backward_seconds + self.receive_seconds + self.return_seconds


def objective_seconds(
    costs: tuple[StageCost, ...], num_microbatches: int, schedule: ScheduleName, *, latency: bool = False
) -> float:
    """Sum of stage times + (M - 1) times the largest period + what optimizers add; for latency without the second.

    A stage's period is its time; under 1F1B the boundary behind it occupies it as well (see ``periods``).
    """
    times = [cost.stage_seconds for cost in costs]
    behind = [cost.receive_seconds + cost.return_seconds for cost in costs[1:]] if schedule == "1f1b" else []
    periods = [time + wait for time, wait in zip_longest(times, behind, fillvalue=0.0)]
    repeated = 0.0 if latency else (num_microbatches - 1) * max(periods)
    return sum(times) + repeated + updates_seconds(costs)


def updates_seconds(costs: Sequence[StageCost]) -> float:
    """When the last optimizer ends, counted from the first stage's last backward (row C12).

    The last gradient reaches the first stage over the backwards and returns of the stages before, in which a stage's
    optimizer already runs; not while its own gradient is on the way, for torch's schedules end with waiting for that.
    """
    hidden, latest = 0.0, 0.0
    for cost in costs:
        latest = max(latest, cost.optimizer_seconds - hidden)
        hidden += cost.return_seconds + cost.backward_seconds
    return latest


def layout_costs(candidate: Candidate, cluster: Cluster, job: Job, layout: Layout) -> tuple[StageCost, ...]:
    """The cost of every stage of a layout; memory is told, not enforced (see ``misfit``).

    Raises:
        KeyError: two neighbouring stages lie on devices that no link connects.
    """
    rules = Rules.of(job, layout.schedule, layout.num_microbatches, cluster)
    exchanges = _exchanges(candidate.graph, cluster, layout) if rules.training else {}
    kept = in_flight_of(rules, layout.ranks)
    codecs = codecs_of(job, cluster)
    costs = [_stage_cost(candidate, cluster, rules, layout, index, exchanges, kept[index], codecs)
             for index in range(layout.num_stages)]
    memories = together(tuple(cost.memory for cost in costs), layout.devices)
    return tuple(replace(cost, memory=memory) for cost, memory in zip(costs, memories, strict=True))


_known_facts = per_graph(way_facts)


def _stage_cost(
    candidate: Candidate, cluster: Cluster, rules: Rules, layout: Layout, index: int,
    exchanges: dict[tuple[int, int], float], in_flight: int, codecs: tuple[Codec, ...],
) -> StageCost:
    first, last, name = layout.stages[index]
    device, way = cluster.device(name), layout.way(index)
    inside = None if way.width == 1 else link_between(cluster, device, cluster.device(layout.devices_of(index)[1]))
    times = layer_times(candidate, device, inside, way, training=rules.training)
    receive = back = 0.0
    if index and layout.devices[index - 1] != name:
        receive, back = _boundary_seconds(candidate.graph, cluster, layout.devices[index - 1], device, first, codecs)
    facts = _known_facts(held_on(candidate, device.kind), first, last, way)
    once = sum(seconds for pair, seconds in exchanges.items() if index in pair)
    return StageCost(
        forward_seconds=sum(times.forward[first:last]),
        backward_seconds=sum(times.backward[first:last]),
        receive_seconds=receive,
        return_seconds=back if rules.training else 0.0,
        optimizer_seconds=(
            sum(times.optimizer[first:last]) + once + gradient_seconds(inside, way, facts.trainable)
        ) if rules.training else 0.0,
        exchanges_with=tuple(sorted(sum(pair) - index for pair in exchanges if index in pair)),
        memory=stage_memory(facts, rules, in_flight),
        capacity_bytes=device.memory_bytes,
    )


def _boundary_seconds(
    graph: Graph, cluster: Cluster, source: str, target: Device, boundary: int, codecs: tuple[Codec, ...]
) -> tuple[float, float]:
    """Time of all values across a boundary, and of their gradients back; one message each."""
    link = cluster.link(cluster.device(source), target)
    ways = [(value, sent(value, graph, link, codecs).seconds) for value in graph.crossing(boundary)]
    return sum(seconds for _, seconds in ways), sum(seconds for value, seconds in ways if value.differentiable)


def _exchanges(graph: Graph, cluster: Cluster, layout: Layout) -> dict[tuple[int, int], float]:
    """Seconds per step that pairs of stages spend on the gradients of weights both hold: latency + 2 bytes / rate.

    The stage of a weight's first user exchanges with the stage of every other user; devices without a link go over
    the stages between, which costs the sum of their links.
    """
    users: dict[int, list[int]] = {}
    for stage, (first, last, _) in enumerate(layout.stages):
        for weight in sorted({weight for layer in graph.layers[first:last] for weight in layer.weights}):
            users.setdefault(weight, []).append(stage)
    seconds: dict[tuple[int, int], float] = {}
    for weight, stages in users.items():
        if graph.weights[weight].trainable and not graph.weights[weight].is_buffer:
            for other in stages[1:]:
                if layout.devices[other] == layout.devices[stages[0]]:
                    continue  # one device has one copy
                pair = (stages[0], other)
                spent = _exchange_seconds(cluster, layout, pair, graph.weights[weight].bytes)
                seconds[pair] = seconds.get(pair, 0.0) + spent
    return seconds


def _exchange_seconds(cluster: Cluster, layout: Layout, pair: tuple[int, int], num_bytes: int) -> float:
    ends = [cluster.device(layout.devices[stage]) for stage in pair]
    direct = link_between(cluster, ends[0], ends[1])
    if direct is not None:
        return direct.seconds(2 * num_bytes)
    path = [cluster.device(name) for name in dict.fromkeys(layout.devices[pair[0] : pair[1] + 1])]
    return sum(cluster.link(one, other).seconds(2 * num_bytes) for one, other in pairwise(path))


def misfit(costs: tuple[StageCost, ...], layout: Layout) -> str:
    """Why a layout cannot run or breaks a memory cap, or an empty string if it fits."""
    if layout.schedule == "1f1b" and layout.num_microbatches < layout.num_stages:
        return f"1f1b needs a micro-batch per stage: {layout.num_microbatches} for {layout.num_stages} stages"
    for device, (needed_bytes, capacity_bytes) in _needs(costs, layout).items():
        if needed_bytes > capacity_bytes:
            return (
                f"{device} is short by {format_bytes(needed_bytes - capacity_bytes)}: needs "
                f"{format_bytes(needed_bytes)}, has {format_bytes(capacity_bytes)}"
            )
    return ""


def short_bytes(costs: tuple[StageCost, ...], layout: Layout) -> int:
    """How much memory the devices of a layout are short of, in all."""
    return sum(max(0, needed - capacity) for needed, capacity in _needs(costs, layout).values())


def _needs(costs: tuple[StageCost, ...], layout: Layout) -> dict[str, tuple[int, int]]:
    """Peak and cap of every device, in bytes, with all its stages."""
    needs: dict[str, tuple[int, int]] = {}
    for cost, device in zip(costs, layout.devices, strict=True):
        needs[device] = needs.get(device, (0, 0))[0] + cost.memory.total, cost.capacity_bytes
    return needs
