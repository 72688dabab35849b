"""Random problems with everything that a job may ask for at once, and all plans of them, by looking at every one.

``every_option`` knows nothing of groups, link classes or arcs: it goes through the devices themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import strategies as st

from autopart.planning.costing.costs import Layout
from autopart.planning.costing.parallel import Way
from autopart.planning.searching.chain import path_objective
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.options import Option, evaluate, schedules
from autopart.schema.device import Cluster, Device
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, device, link

Problem = tuple[Candidate, Cluster, Job]

MILLISECONDS = st.integers(1, 20).map(lambda k: k * 1e-3)
BYTES = st.integers(0, 40).map(lambda k: 100 * k)


@st.composite
def late_candidates(
    draw: st.DrawFn, *, num_layers: int, training: bool = True, batch_size: int = 1,
    counts: tuple[int, ...] = (1, 2, 4, 8), tied: bool = True,
) -> Candidate:
    """A random chain of two kinds' times, with optimizers that take none to most of a step."""
    graph = chain(
        num_layers, training=training, batch_size=batch_size,
        weight_bytes=draw(st.lists(BYTES, min_size=num_layers, max_size=num_layers)),
        value_bytes=draw(st.lists(BYTES, min_size=num_layers + 1, max_size=num_layers + 1)),
        saved_bytes=draw(BYTES), peak_bytes=draw(BYTES),
        tied=(0, num_layers - 1) if tied and num_layers > 1 and draw(st.booleans()) else None,
        legal_cuts=tuple(k for k in range(1, num_layers) if draw(st.integers(0, 5))),
    )
    if training:  # some layers keep what they save where the stage recomputes
        layers = tuple(replace(each, reruns=bool(draw(st.integers(0, 3)))) for each in graph.layers)
        graph = replace(graph, layers=layers)
    times = st.lists(MILLISECONDS, min_size=num_layers, max_size=num_layers)
    chosen = candidate(graph, {"fast": draw(times), "slow": draw(times)}, draw(st.sampled_from(counts)))
    return with_any_training(draw, chosen) if training else chosen


def with_any_training(draw: st.DrawFn, chosen: Candidate) -> Candidate:
    """The candidate with backwards quicker and slower than forwards, and optimizers of any length, unlike by kind."""
    num = len(chosen.graph.layers)
    factors = st.lists(st.sampled_from([0.2, 1.0, 2.0, 4.0]), min_size=num, max_size=num)
    seconds = st.lists(st.sampled_from([0.0, 1e-3, 1e-2, 5e-2, 0.2]), min_size=num, max_size=num)
    kinds = tuple(
        replace(
            kind, optimizer_seconds=tuple(draw(seconds)),
            backward_seconds=tuple(f * t for f, t in zip(draw(factors), kind.forward_seconds, strict=True)),
        )
        for kind in chosen.profile.kinds
    )
    return replace(chosen, profile=replace(chosen.profile, kinds=kinds))


@st.composite
def clusters(draw: st.DrawFn, *, max_devices: int, tight: bool = True) -> Cluster:
    """Devices of two sorts that differ in kind, node, cap or speed, or in none; some pairs may have no link."""
    sorts = [
        device(
            "any", kind=draw(st.sampled_from(["fast", "fast", "slow"])), node=draw(st.sampled_from("aab")),
            memory_bytes=1000 * draw(st.integers(5, 120)) if tight else 10**9,
            speed=draw(st.sampled_from([1.0, 1.0, 0.5])),
        )
        for _ in range(2)
    ]
    number = st.integers(1, max_devices)
    devices = tuple(replace(draw(st.sampled_from(sorts)), name=f"d{k}") for k in range(draw(number)))
    slow = link(latency_seconds=1e-4, bandwidth=1e5, ends=("a", "b"))
    fast = link(latency_seconds=1e-5, bandwidth=draw(st.sampled_from([1e5, 1e6, 1e7])))
    own = replace(link(latency_seconds=1e-3, bandwidth=1e8, ends=("d0", "d1")), level="device")
    inside = tuple(replace(fast, ends=(node, node)) for node in "ab")
    links = draw(st.sampled_from([(slow, fast), (fast,), (own, slow, fast), inside]))
    return Cluster(devices=devices, links=links)


def wishes(draw: st.DrawFn, num_layers: int, devices: Cluster) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Pins, bans and layers that stay together, all at once, as words of a job."""
    layers = st.sampled_from([f"l{k}" for k in range(num_layers)])
    places = st.sampled_from([each.name for each in devices.devices])
    pairs = st.lists(st.tuples(layers, places), max_size=1)
    return {
        "pins": tuple(draw(pairs)), "forbidden": tuple(draw(pairs)),
        "together": tuple(draw(st.lists(st.tuples(layers, layers), max_size=1))),
    }


@st.composite
def varied_problems(
    draw: st.DrawFn, *, training: bool | None = None, max_layers: int = 4, max_devices: int = 3, wished: bool = True,
    tied: bool = True,
) -> Problem:
    """Ways, recomputing, caps per device, links of pairs, wishes, late optimizers: any of it together."""
    training = bool(draw(st.integers(0, 4))) if training is None else training
    num_layers = draw(st.integers(1, max_layers))
    chosen = draw(late_candidates(num_layers=num_layers, training=training, batch_size=2, tied=tied))
    devices = draw(clusters(max_devices=max_devices))
    job = Job(
        mode="train" if training else "infer", batch=2 * chosen.num_microbatches,
        optimizer=draw(st.sampled_from(["adamw", "sgd"])) if training else "none",
        objective=draw(st.sampled_from(["throughput", "throughput", "latency"])),
        schedule=draw(st.sampled_from([None, None, "gpipe", "1f1b"])),
        stages=draw(st.sampled_from([None, None, None, 2])),
        tensor_parallel=draw(st.sampled_from([1, 2, 2])), data_parallel=draw(st.sampled_from([1, 2, 2])),
        recompute=draw(st.sampled_from(["never", "auto", "auto", "always"])) if training else "never",
    )
    if job.stages and job.stages > min(len(devices.devices), len(chosen.graph.legal_cuts) + 1):
        job = replace(job, stages=None)
    if wished and draw(st.booleans()):
        job = replace(job, **wishes(draw, num_layers, devices))  # type: ignore[arg-type]  # words of a job
    return chosen, devices, job


def late_problems() -> st.SearchStrategy[Problem]:
    """Training without wishes."""
    return varied_problems(training=True, wished=False)


def _are_alike(devices: Cluster, one: Device, other: Device) -> bool:
    """Whether two devices may be swapped: the same figures, and the same links to all others."""
    def terms(end: Device, third: Device) -> tuple[float, float] | None:
        try:
            found = devices.link(end, third)
        except KeyError:
            return None
        return found.latency_seconds, found.bandwidth_bytes_per_second

    figures = [(d.kind, d.speed, d.memory_bytes, d.rent_usd_per_hour) for d in (one, other)]
    rest = [third for third in devices.devices if third.name not in (one.name, other.name)]
    return figures[0] == figures[1] and all(terms(one, third) == terms(other, third) for third in rest)


def _places(devices: Cluster, job: Job) -> list[tuple[str, ...]]:
    """The devices that a stage may have: one, or several that are alike, joined, and named by no wish."""
    named = {name for _, name in (*job.pins, *job.forbidden)}
    free = [each for each in devices.devices if each.name not in named]
    found: list[tuple[str, ...]] = [(each.name,) for each in devices.devices]
    for width in (2, 4):
        for some in itertools.combinations(free, width):
            pairs = list(itertools.combinations(some, 2))
            if all(_are_alike(devices, *pair) and any(each.matches(*pair) for each in devices.links) for pair in pairs):
                found.append(tuple(each.name for each in some))
    return found


def _ways(job: Job, batch_size: int, width: int) -> list[Way]:
    recomputes = {"never": (False,), "always": (True,), "auto": (False, True)}[job.recompute]
    return [
        Way(tensor=width // data, data=data, recompute=recompute)
        for data in (1, 2) for recompute in recomputes
        if width % data == 0 and data <= job.data_parallel and width // data <= job.tensor_parallel
        and batch_size % data == 0
    ]


def _keeps_wishes(job: Job, boundaries: tuple[int, ...], places: tuple[tuple[str, ...], ...]) -> bool:
    stage = {f"l{k}": s for s in range(len(places)) for k in range(boundaries[s], boundaries[s + 1])}
    return (
        all(places[stage[layer]] == (name,) for layer, name in job.pins)
        and all(name not in places[stage[layer]] for layer, name in job.forbidden)
        and all(len({stage[layer] for layer in names}) == 1 for names in job.together)
    )


def every_option(problem: Problem) -> Iterator[Option]:
    """Every plan that fits and keeps the wishes: cuts, devices in any order, ways and schedules."""
    chosen, devices, job = problem
    graph, offered = chosen.graph, _places(devices, job)
    for num_stages in range(1, min(len(devices.devices), len(graph.legal_cuts) + 1) + 1):
        if job.stages not in (None, num_stages):
            continue
        for places in itertools.permutations(offered, num_stages):
            names = [name for place in places for name in place]
            if len(set(names)) < len(names) or not _are_joined(devices, places):
                continue
            for cuts in itertools.combinations(sorted(graph.legal_cuts), num_stages - 1):
                boundaries = (0, *cuts, len(graph.layers))
                if not _keeps_wishes(job, boundaries, places):
                    continue
                for ways in itertools.product(*(_ways(job, graph.batch_size, len(place)) for place in places)):
                    for schedule in schedules(job):
                        option = evaluate(chosen, devices, job, Layout(
                            num_microbatches=chosen.num_microbatches, schedule=schedule, boundaries=boundaries,
                            devices=tuple(place[0] for place in places), ways=ways,
                            others=tuple(place[1:] for place in places),
                        ))
                        if not option.misfit:
                            yield option


def _are_joined(devices: Cluster, places: tuple[tuple[str, ...], ...]) -> bool:
    ends = [devices.device(place[0]) for place in places]
    return all(any(each.matches(*pair) for each in devices.links) for pair in itertools.pairwise(ends))


def objective_along(instance: Instance, path: tuple[int, ...]) -> float:
    """What a path costs: its sum and the largest period, under GPipe in training both of its phases."""
    if not instance.in_phases:
        return path_objective(instance, instance.arcs, path)
    arcs, some = instance.arcs, list(path)
    behind = float((arcs.seconds - arcs.ahead)[some].max())
    return arcs.sum_along(path) + instance.repeats * (float(arcs.ahead[some].max()) + behind)
