"""Problems to plan: hand-made chains, random ones, and a brute-force planner to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from hypothesis import strategies as st

from autopart.planning.costing.costs import Layout
from autopart.planning.costing.groups import group_devices
from autopart.planning.costing.parallel import ways
from autopart.planning.searching.options import Option, evaluate, schedules
from autopart.schema.device import Cluster, Device, Link
from autopart.schema.graph import Graph, Layer, Value, Weight
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from autopart.schema.profile import KindProfile, Profile

GB = 10**9


def device(name: str, *, kind: str = "fast", memory_bytes: int = 100 * GB, node: str = "n", speed: float = 1.0,
           memory_origin: str = "data sheet") -> Device:
    return Device(name=name, kind=kind, node=node, memory_bytes=memory_bytes, memory_origin=memory_origin,
                  backend="absent", speed=speed)


def link(*, latency_seconds: float = 0.0, bandwidth: float = 1e9, ends: tuple[str, str] = ("*", "*")) -> Link:
    return Link(level="node", ends=ends, latency_seconds=latency_seconds, bandwidth_bytes_per_second=bandwidth,
                origin="given", source="test")


def cluster(*devices: Device, links: tuple[Link, ...] | None = None) -> Cluster:
    return Cluster(devices=devices, links=(link(),) if links is None else links)


def chain(
    num_layers: int, *, weight_bytes: Sequence[int] | int = 1000, value_bytes: Sequence[int] | int = 1000,
    saved_bytes: int = 0, peak_bytes: int = 2000, tied: tuple[int, int] | None = None,
    skips: tuple[tuple[int, int, int], ...] = (), legal_cuts: tuple[int, ...] | None = None, training: bool = False,
    batch_size: int = 1,
) -> Graph:
    """A chain with one weight per layer; ``skips`` are (producer, consumer, bytes); ``tied`` shares one weight."""
    weights = [weight_bytes] * num_layers if isinstance(weight_bytes, int) else list(weight_bytes)
    sizes = [value_bytes] * (num_layers + 1) if isinstance(value_bytes, int) else list(value_bytes)
    uses: dict[int, tuple[int, ...]] = {index: (index,) for index in range(num_layers)}
    if tied is not None:
        uses[tied[1]] = (tied[0], tied[1])
    values = [
        Value(name=f"v{k}", producer=k - 1, consumers=(k,), bytes=sizes[k], shape=(sizes[k] // 4,), dtype="float32",
              differentiable=k > 0)
        for k in range(num_layers + 1)
    ]
    values += [
        Value(name=f"skip{a}_{b}", producer=a, consumers=(b,), bytes=size, shape=(size // 4,), dtype="float32",
              differentiable=True)
        for a, b, size in skips
    ]
    return Graph(
        model="chain", fingerprint="f", training=training, batch_size=batch_size,
        layers=tuple(
            Layer(name=f"l{k}", weights=uses[k], work=(), saved_bytes=saved_bytes if training else 0,
                  peak_bytes=peak_bytes, signature=f"s{k}")
            for k in range(num_layers)
        ),
        weights=tuple(
            Weight(name=f"w{k}", num_elements=size // 4, bytes=size, dtype="float32", is_buffer=False, trainable=True)
            for k, size in enumerate(weights)
        ),
        values=tuple(values),
        legal_cuts=tuple(range(1, num_layers)) if legal_cuts is None else legal_cuts,
    )


def profile(graph: Graph, seconds: Mapping[str, Sequence[float]], *, backward: float = 2.0, update: float = 0.1,
            origin: str = "measured") -> Profile:
    """Times per kind; in training backward and optimizer are multiples of forward."""
    factor = (backward, update) if graph.training else (0.0, 0.0)
    return Profile(
        fingerprint=graph.fingerprint, training=graph.training, batch_size=graph.batch_size,
        kinds=tuple(
            KindProfile(
                kind=kind, origin="measured" if origin == "measured" else "estimated", basis="test",
                forward_seconds=tuple(times),
                backward_seconds=tuple(factor[0] * time for time in times),
                optimizer_seconds=tuple(factor[1] * time for time in times),
                spread=(0.0,) * len(times),
            )
            for kind, times in seconds.items()
        ),
    )


def candidate(graph: Graph, seconds: Mapping[str, Sequence[float]], num_microbatches: int) -> Candidate:
    return Candidate(num_microbatches=num_microbatches, graph=graph, profile=profile(graph, seconds))


@st.composite
def problems(
    draw: st.DrawFn, *, training: bool | None = None, max_layers: int = 6, max_devices: int = 3, tight: bool = True
) -> tuple[Candidate, Cluster, Job]:
    """A random chain with skips and maybe a tied weight, a random cluster of two kinds, and a job."""
    num_layers = draw(st.integers(1, max_layers))
    train = draw(st.booleans()) if training is None else training
    sizes = st.integers(0, 40).map(lambda k: 100 * k)
    skips = tuple(
        (a, b, draw(sizes))
        for a, b in draw(st.lists(st.tuples(st.integers(-1, num_layers), st.integers(0, num_layers)), max_size=2))
        if a < b and a < num_layers
    )
    num_microbatches = draw(st.sampled_from([1, 2, 4]))
    graph = chain(
        num_layers,
        weight_bytes=draw(st.lists(sizes, min_size=num_layers, max_size=num_layers)),
        value_bytes=draw(st.lists(sizes, min_size=num_layers + 1, max_size=num_layers + 1)),
        saved_bytes=draw(sizes), peak_bytes=draw(sizes), skips=tuple(dict.fromkeys(skips)), training=train,
        tied=(0, num_layers - 1) if num_layers > 1 and draw(st.booleans()) else None,
        legal_cuts=tuple(k for k in range(1, num_layers) if draw(st.integers(0, 5))),
    )
    times = st.integers(1, 20).map(lambda k: k * 1e-3)
    seconds = {
        kind: draw(st.lists(times, min_size=num_layers, max_size=num_layers)) for kind in ("fast", "slow")
    }
    memory = st.integers(5, 200).map(lambda k: 1000 * k) if tight else st.just(100 * GB)
    caps = st.sampled_from(draw(st.lists(memory, min_size=1, max_size=2)))  # so that some devices are alike
    devices = tuple(
        device(f"d{k}", kind=draw(st.sampled_from(["fast", "slow"])), memory_bytes=draw(caps),
               node=draw(st.sampled_from(["a", "b"])), speed=draw(st.sampled_from([1.0, 0.5])))
        for k in range(draw(st.integers(1, max_devices)))
    )
    links = (link(latency_seconds=1e-4, bandwidth=1e5, ends=("a", "b")), link(latency_seconds=1e-5, bandwidth=1e7))
    job = Job(
        mode="train" if train else "infer", batch=num_microbatches,
        optimizer=draw(st.sampled_from(["adamw", "sgd"])) if train else "none",
        objective=draw(st.sampled_from(["throughput", "latency"])),
        schedule=draw(st.sampled_from([None, "gpipe", "1f1b"])),
        stages=draw(st.sampled_from([None, None, min(len(devices), len(graph.legal_cuts) + 1)])),
    )
    return candidate(graph, seconds, num_microbatches), Cluster(devices=devices, links=links), job


def all_options(candidate: Candidate, cluster: Cluster, job: Job) -> Iterator[Option]:
    """Every plan there is: all cuts, all orders of all subsets of devices, all schedules."""
    names = [device.name for device in cluster.devices]
    graph = candidate.graph
    for num_stages in range(1, min(len(names), len(graph.legal_cuts) + 1) + 1):
        if job.stages not in (None, num_stages):
            continue
        for cuts in itertools.combinations(sorted(graph.legal_cuts), num_stages - 1):
            for devices in itertools.permutations(names, num_stages):
                for schedule in schedules(job):
                    yield evaluate(candidate, cluster, job, Layout(
                        num_microbatches=candidate.num_microbatches, schedule=schedule,
                        boundaries=(0, *cuts, len(graph.layers)), devices=devices,
                    ))


def best_by_brute_force(candidate: Candidate, cluster: Cluster, job: Job) -> Option | None:
    """The fitting option of least objective, or None."""
    fitting = [option for option in all_options(candidate, cluster, job) if not option.misfit]
    return min(fitting, key=lambda option: option.objective_seconds, default=None)


@st.composite
def wide_problems(
    draw: st.DrawFn, *, max_layers: int = 4, bandwidths: tuple[float, ...] = (1e6,)
) -> tuple[Candidate, Cluster, Job]:
    """A random chain in training, one or two fast and slow devices, stages of one or two devices."""
    num_layers = draw(st.integers(1, max_layers))
    sizes = st.integers(0, 40).map(lambda k: 100 * k)
    graph = chain(
        num_layers, training=True, batch_size=2,
        weight_bytes=draw(st.lists(sizes, min_size=num_layers, max_size=num_layers)),
        value_bytes=draw(st.lists(sizes, min_size=num_layers + 1, max_size=num_layers + 1)),
        saved_bytes=draw(sizes), peak_bytes=draw(sizes),
    )
    times = st.lists(st.integers(1, 20).map(lambda k: k * 1e-3), min_size=num_layers, max_size=num_layers)
    devices = tuple(
        device(f"{kind}{number}", kind=kind) for kind in ("fast", "slow") for number in range(draw(st.integers(1, 2)))
    )
    memory = {kind: draw(st.integers(5, 200)) * 1000 for kind in ("fast", "slow")}
    devices = tuple(replace(each, memory_bytes=memory[each.kind]) for each in devices)
    num_microbatches = draw(st.sampled_from([2, 4]))
    job = Job(
        mode="train", batch=2 * num_microbatches, optimizer="adamw", schedule=draw(st.sampled_from([None, "gpipe"])),
        tensor_parallel=draw(st.sampled_from([1, 2])), data_parallel=2,
        recompute=draw(st.sampled_from(["never", "auto"])),
    )
    chosen = candidate(graph, {"fast": draw(times), "slow": draw(times)}, num_microbatches)
    links = (link(latency_seconds=1e-5, bandwidth=draw(st.sampled_from(bandwidths))),)
    return chosen, Cluster(devices=devices, links=links), job


def best_wide_by_brute_force(candidate: Candidate, cluster: Cluster, job: Job) -> Option | None:
    """The fitting option of least objective over all cuts, groups, ways and orders; devices of a group are alike."""
    graph, groups = candidate.graph, group_devices(cluster)
    offered = ways(job, graph.batch_size, max(group.size for group in groups))
    best: Option | None = None
    for num_stages in range(1, min(len(cluster.devices), len(graph.legal_cuts) + 1) + 1):
        for cuts in itertools.combinations(sorted(graph.legal_cuts), num_stages - 1):
            for places in itertools.product(itertools.product(range(len(groups)), offered), repeat=num_stages):
                used = [sum(way.width for number, way in places if number == g) for g in range(len(groups))]
                if any(count > group.size for count, group in zip(used, groups, strict=True)):
                    continue
                left = [[each.name for each in group.devices] for group in groups]
                names = [tuple(left[number].pop(0) for _ in range(way.width)) for number, way in places]
                for schedule in schedules(job):
                    option = evaluate(candidate, cluster, job, Layout(
                        num_microbatches=candidate.num_microbatches, schedule=schedule,
                        boundaries=(0, *cuts, len(graph.layers)), devices=tuple(each[0] for each in names),
                        ways=tuple(way for _, way in places), others=tuple(each[1:] for each in names),
                    ))
                    if not option.misfit and (best is None or option.objective_seconds < best.objective_seconds):
                        best = option
    return best
