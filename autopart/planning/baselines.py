"""What simpler ways give: the plans that autopart's are compared with, evaluated by the same model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from autopart.planning.costs import Layout
from autopart.planning.groups import link_between
from autopart.planning.memory import Rules, memory_terms, num_in_flight
from autopart.planning.options import Option, evaluate, rank, schedules
from autopart.planning.tables import facts_table
from autopart.schema.device import Cluster
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
    rules = Rules.of(job, schedule, candidate.num_microbatches)
    ends = (0, *sorted(set(candidate.graph.legal_cuts)), len(candidate.graph.layers))
    terms = memory_terms(facts_table(candidate.graph, ends), rules)
    devices = cluster.devices[: job.stages]
    begin, boundaries = 0, [0]
    for index, device in enumerate(devices):
        total = terms.total(num_in_flight(rules, len(devices), index))[begin]
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


BASELINES: dict[Method, Callable[[Candidate, Cluster, Job, ScheduleName], Boundaries]] = {
    "even": _even,
    "memory-fill": _memory_fill,
    "time-balanced": _time_balanced,
}
"""boundaries of the stages; they lie on the cluster's devices in the given order"""

DESCRIPTIONS: dict[str, str] = {
    "even": "equal numbers of layers over all devices, in the given order",
    "memory-fill": "each device filled up to its memory cap, in the given order",
    "time-balanced": "equal time per stage, blind to the speed of the devices",
    "single-device": "the whole model on the best single device",
}


def evaluate_baseline(
    method: Method, candidates: tuple[Candidate, ...], cluster: Cluster, job: Job
) -> Option | None:
    """The best that a baseline gives over micro-batch counts and schedules, one that fits if any does.

    None if it puts neighbouring stages on devices that no link connects, or cannot make the prescribed stages.
    """
    options = []
    for candidate in candidates:
        for schedule in schedules(job):
            boundaries = BASELINES[method](candidate, cluster, job, schedule)
            devices = cluster.devices[: len(boundaries) - 1]
            linked = all(link_between(cluster, *pair) for pair in pairwise(devices))
            if linked and job.stages in (None, len(devices)):
                layout = Layout(
                    num_microbatches=candidate.num_microbatches, schedule=schedule, boundaries=boundaries,
                    devices=tuple(device.name for device in devices),
                )
                options.append(evaluate(candidate, cluster, job, layout))
    return min(options, key=lambda option: (bool(option.misfit), *rank(option, job)), default=None)


def best_single_device(candidates: tuple[Candidate, ...], cluster: Cluster, job: Job) -> Option:
    """The best single device: whole batch at once if there is such a candidate and it fits, else in micro-batches."""
    options = [
        evaluate(
            candidate, cluster, job,
            Layout(
                num_microbatches=candidate.num_microbatches, schedule=schedules(job)[0],
                boundaries=(0, len(candidate.graph.layers)), devices=(device.name,),
            ),
        )
        for candidate in candidates
        for device in cluster.devices
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


def summarise(name: Method | str, option: Option | None, step_seconds: float) -> Baseline:
    """A baseline beside a plan of ``step_seconds``."""
    if option is None:
        reason = "it puts neighbouring stages on devices without a link, or cannot make the prescribed stages"
    else:
        reason = option.misfit
    fits = option is not None and not option.misfit
    seconds = option.step_seconds if option is not None and fits else None
    return Baseline(
        name=name,  # type: ignore[arg-type]  # a key of DESCRIPTIONS
        description=DESCRIPTIONS[name],
        fits=fits,
        step_seconds=seconds,
        factor=None if seconds is None else seconds / step_seconds,
        reason=reason,
    )
