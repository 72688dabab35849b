"""What simpler ways give: the plans that autopart's are compared with, evaluated by the same model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from itertools import pairwise

from autopart.planning.costing.costs import Layout
from autopart.planning.costing.groups import link_between
from autopart.planning.costing.holding import held_on
from autopart.planning.costing.memory import Rules, memory_terms, num_in_flight
from autopart.planning.costing.parallel import usual_way, usual_ways, way_tables
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.chain import best_path
from autopart.planning.searching.greedy import greedy_layouts
from autopart.planning.searching.options import Option, evaluate, layout_of, rank, schedules
from autopart.planning.solving.effort import IsOver, never
from autopart.schema.device import Cluster, Device
from autopart.schema.graph import Graph
from autopart.schema.job import Job, Method, ScheduleName
from autopart.schema.plan import Baseline
from autopart.schema.problem import Candidate

__all__ = ["BASELINES", "DESCRIPTIONS", "best_single_device", "evaluate_baseline", "summarise"]

Boundaries = tuple[int, ...]


def _nearest_cuts(graph: Graph, wanted: list[float]) -> Boundaries:
    """Legal cuts next to the wanted positions, each used once; fewer if there are fewer."""
    cuts = set(graph.legal_cuts)
    chosen: set[int] = set()
    for position in wanted:
        if cuts - chosen:
            chosen.add(min(cuts - chosen, key=lambda cut: (abs(cut - position), cut)))
    return (0, *sorted(chosen), len(graph.layers))


def _even(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Boundaries:
    """Equal numbers of layers on all devices in the given order."""
    num_stages = job.stages or len(cluster.devices)
    num_layers = len(candidate.graph.layers)
    return _nearest_cuts(candidate.graph, [num_layers * k / num_stages for k in range(1, num_stages)])


def _memory_fill(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Boundaries:
    """Each device filled up to its memory before the next one is used (accelerate's sequential device map)."""
    rules = Rules.of(job, schedule, candidate.num_microbatches, cluster)
    ends = (0, *sorted(set(candidate.graph.legal_cuts)), len(candidate.graph.layers))
    devices, way = cluster.devices[: job.stages], usual_way(job)
    terms = {
        kind: memory_terms(way_tables(held_on(candidate, kind), ends, (way,))[0], rules)
        for kind in dict.fromkeys(device.kind for device in devices)
    }
    begin, boundaries = 0, [0]
    for index, device in enumerate(devices):
        total = terms[device.kind].total(num_in_flight(rules, len(devices), index))[begin]
        fitting = [end for end in range(begin + 1, len(ends)) if total[end] <= device.memory_bytes]
        is_last = index == len(devices) - 1
        begin = len(ends) - 1 if is_last else max(fitting, default=begin + 1)
        boundaries.append(ends[begin])
        if begin == len(ends) - 1:
            break
    return tuple(boundaries)


def _time_balanced(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Boundaries:
    """Stages of equal time as if all devices were like the first one (torchgpipe's block partition)."""
    kind = candidate.profile.kind(cluster.devices[0].kind)
    elapsed = [0.0]
    for forward, backward in zip(kind.forward_seconds, kind.backward_seconds, strict=True):
        elapsed.append(elapsed[-1] + forward + backward)
    ends = (*sorted(set(candidate.graph.legal_cuts)), len(candidate.graph.layers))
    num_stages = job.stages or len(cluster.devices)
    low, high = elapsed[-1] / num_stages * (1 - 1e-9), elapsed[-1]
    best: Boundaries = (0, ends[-1])
    for _ in range(50):
        middle = (low + high) / 2
        filled = _fill_up_to(middle, elapsed, ends)
        if filled and len(filled) - 1 <= num_stages:
            best, high = filled, middle
        else:
            low = middle
    return best


def _fill_up_to(limit: float, elapsed: list[float], ends: Boundaries) -> Boundaries:
    """Boundaries of stages each as long as the limit allows; () if one item alone is longer."""
    boundaries = [0]
    for end, following in zip(ends, (*ends[1:], ends[-1]), strict=True):
        if elapsed[end] - elapsed[boundaries[-1]] > limit:
            return ()
        if end == ends[-1] or elapsed[following] - elapsed[boundaries[-1]] > limit:
            boundaries.append(end)
    return tuple(boundaries)


def _shares(candidate: Candidate, amounts: Sequence[float], by: Sequence[float]) -> Boundaries:
    """Boundaries that give every device its share ``by`` of the layers' ``amounts``."""
    elapsed = [0.0, *itertools.accumulate(amounts)]
    wanted, position = [], 0
    for share in itertools.accumulate(by[:-1]):
        goal = elapsed[-1] * share / sum(by)
        while position < len(amounts) and elapsed[position] + amounts[position] / 2 < goal:
            position += 1
        wanted.append(float(position))
    return _nearest_cuts(candidate.graph, wanted)


def _bytes_of(graph: Graph, *, parameters_only: bool) -> list[float]:
    """Per layer its new weights' elements, or all bytes that it holds."""
    seen: set[int] = set()
    amounts = []
    for layer in graph.layers:
        new = [graph.weights[index] for index in layer.weights if index not in seen]
        seen |= set(layer.weights)
        amounts.append(
            float(sum(weight.num_elements for weight in new if not weight.is_buffer)) if parameters_only
            else float(sum(weight.bytes for weight in new) + layer.saved_bytes)
        )
    return amounts if sum(amounts) else [1.0] * len(amounts)


def _parameters(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Boundaries:
    """Equal numbers of parameters."""
    by = [1.0] * (job.stages or len(cluster.devices))
    return _shares(candidate, _bytes_of(candidate.graph, parameters_only=True), by)


def _balanced_bytes(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Boundaries:
    """Bytes in proportion to the devices' memory (accelerate's balanced device map)."""
    by = [float(device.memory_bytes) for device in cluster.devices[: job.stages]]
    return _shares(candidate, _bytes_of(candidate.graph, parameters_only=False), by)


def _speed_proportional(candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName) -> Boundaries:
    """Work in proportion to the devices' speed on the whole model."""
    devices = cluster.devices[: job.stages]
    totals = [sum(_layer_seconds(candidate, device)) for device in devices]
    return _shares(candidate, _layer_seconds(candidate, devices[0]), [1 / total for total in totals])


def _layer_seconds(candidate: Candidate, device: Device) -> list[float]:
    kind = candidate.profile.kind(device.kind)
    rows = zip(kind.forward_seconds, kind.backward_seconds, strict=True)
    return [(forward + backward) / device.speed for forward, backward in rows]


BASELINES: dict[Method, Callable[[Candidate, Cluster, Job, ScheduleName], Boundaries]] = {
    "even": _even,
    "parameters": _parameters,
    "memory-fill": _memory_fill,
    "balanced-bytes": _balanced_bytes,
    "time-balanced": _time_balanced,
    "speed-proportional": _speed_proportional,
}
"""boundaries of the stages; they lie on the cluster's devices in the given order"""

DESCRIPTIONS: dict[str, str] = {
    "even": "equal numbers of layers over all devices, in the given order",
    "parameters": "equal numbers of parameters over all devices, in the given order",
    "memory-fill": "each device filled up to its memory cap, in the given order",
    "balanced-bytes": "bytes in proportion to the devices' memory, in the given order",
    "time-balanced": "equal time per stage, blind to the speed of the devices",
    "speed-proportional": "work in proportion to the devices' speed, in the given order",
    "greedy": "devices of a kind side by side, each filled up to the least time limit that works",
    "chain-dp": "the dynamic program alone, without integer programs and their bound",
    "single-device": "the whole model on the best single device",
}


def evaluate_baseline(
    method: Method, candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, *, out_of_time: IsOver = never
) -> Option | None:
    """The best that a baseline gives over micro-batch counts and schedules, one that fits if any does.

    None if it puts neighbouring stages on devices that no link connects, or cannot make the prescribed stages.
    """
    options = []
    for candidate in candidates:
        for schedule in schedules(job):
            for layout in _layouts(method, candidate, cluster, job, schedule, out_of_time):
                devices = [cluster.device(name) for name in layout.devices]
                linked = all(link_between(cluster, *pair) for pair in pairwise(devices))
                if linked and job.stages in (None, layout.num_stages):
                    options.append(evaluate(candidate, cluster, job, layout))
    fitting = [option for option in options if not option.misfit]
    return min(fitting, key=lambda option: rank(option, job)) if fitting else options[0] if options else None


def _layouts(
    method: Method, candidate: Candidate, cluster: Cluster, job: Job, schedule: ScheduleName, out_of_time: IsOver
) -> list[Layout]:
    if method == "greedy":
        return greedy_layouts(candidate, cluster, job, schedule)
    if method == "chain-dp":
        instance = build_instance(candidate, cluster, job, schedule)
        path = best_path(instance, out_of_time=out_of_time)
        layout = layout_of(instance, path, schedule, cluster) if path else None
        return [layout] if layout is not None else []
    boundaries = BASELINES[method](candidate, cluster, job, schedule)
    return [Layout(
        num_microbatches=candidate.num_microbatches, schedule=schedule, boundaries=boundaries,
        devices=tuple(device.name for device in cluster.devices[: len(boundaries) - 1]),
        ways=usual_ways(job, len(boundaries) - 1),
    )]


def best_single_device(candidates: tuple[Candidate, ...], cluster: Cluster, job: Job) -> Option:
    """The best single device: whole batch at once if there is such a candidate and it fits, else in micro-batches."""
    by_name = sorted(cluster.devices, key=lambda device: device.name, reverse=True)
    different = {(device.kind, device.speed, device.memory_bytes): device for device in by_name}
    options = [
        evaluate(
            candidate, cluster, job,
            Layout(
                num_microbatches=candidate.num_microbatches, schedule=schedules(job)[0],
                boundaries=(0, len(candidate.graph.layers)), devices=(device.name,), ways=usual_ways(job, 1),
            ),
        )
        for candidate in candidates
        for device in different.values()
    ]
    return min(
        options,
        key=lambda option: (
            bool(option.misfit), option.layout.num_microbatches > 1, *_shortage(option), *rank(option, job)
        ),
    )


def _shortage(option: Option) -> tuple[int, ...]:
    """Among single devices that do not fit the one that is short by least is named."""
    return (option.costs[0].memory.total - option.costs[0].capacity_bytes,) if option.misfit else ()


def summarise(name: Method | str, option: Option | None, chosen: Option, job: Job) -> Baseline:
    """A baseline beside the plan chosen: their steps are compared, or their latencies where those are the objective."""
    if option is None:
        reason = "it puts neighbouring stages on devices without a link, or cannot make the prescribed stages"
    else:
        reason = option.misfit
    fits = option is not None and not option.misfit
    seconds = factor = None
    if option is not None and fits:
        seconds, factor = option.step_seconds, rank(option, job)[0] / rank(chosen, job)[0]
    return Baseline(
        name=name,  # type: ignore[arg-type]  # a key of DESCRIPTIONS
        description=DESCRIPTIONS[name],
        fits=fits,
        step_seconds=seconds,
        factor=factor,
        reason=reason,
    )
