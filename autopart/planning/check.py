"""A plan recomputed without the solver: the solver is not believed.

Nothing here comes from the path program, the dynamic program or their tables; times are added up layer by layer, and
memory is taken from the facts of each stage.
"""

from __future__ import annotations

import math
from itertools import accumulate, combinations, pairwise

from autopart.planning.costing.codecs import codecs_of
from autopart.planning.costing.kvcache import ELEMENT_BYTES
from autopart.planning.costing.memory import stage_memory
from autopart.planning.costing.onedevice import in_flight_of, together
from autopart.planning.costing.parallel import Way, gradient_seconds, layer_times, way_facts
from autopart.planning.costing.rules import Rules
from autopart.planning.formula import last_update_seconds, round_seconds, stage_seconds
from autopart.planning.searching.options import LOOPED
from autopart.planning.simulating.simulate import simulate, warmup
from autopart.schema.codec import CodecName, is_compressible, wire_bytes
from autopart.schema.device import Device, Link
from autopart.schema.graph import Graph, Value
from autopart.schema.plan import Plan, Stage
from autopart.schema.problem import Candidate
from autopart.stagedtypes import held_graph

__all__ = ["CheckError", "check"]

TOLERANCE = 1e-9
"""relative: the same sums in another order"""


class CheckError(AssertionError):
    """A plan says something that its model, profile and cluster do not: a fault of the planner, not of the user."""


def check(plan: Plan, candidate: Candidate) -> None:
    """Recompute everything a plan claims from the candidate it was made of.

    Raises:
        CheckError: anything differs: layers, cuts, devices, times, memory, caps, transfers, step time, objective.
    """
    boundaries = _check_layers(plan, candidate)
    _check_devices(plan)
    _check_wishes(plan)
    for stage, first, last in zip(plan.stages, boundaries, boundaries[1:], strict=False):
        _check_times(plan, candidate, stage, first, last)
    _check_memory(plan, candidate, boundaries)
    _check_transfers(plan, candidate.graph, boundaries)
    _check_schedule(plan, candidate)
    _check_step(plan, candidate)
    _check_limits(plan)
    _check_proof(plan)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def _same(what: str, claimed: float, found: float) -> None:
    close = math.isclose(claimed, found, rel_tol=TOLERANCE, abs_tol=1e-15)
    _require(close, f"{what}: the plan says {claimed}, it is {found}")


def _check_layers(plan: Plan, candidate: Candidate) -> list[int]:
    """Every layer once and in order, cuts only where they are legal; the boundaries of the stages."""
    graph = candidate.graph
    _require(plan.model.fingerprint == graph.fingerprint, "the plan is of another model")
    placed = [name for stage in plan.stages for name in stage.layers]
    _require(placed == [layer.name for layer in graph.layers], "the stages do not hold every layer once and in order")
    boundaries = [0, *accumulate(len(stage.layers) for stage in plan.stages)]
    for cut in boundaries[1:-1]:
        _require(cut in graph.legal_cuts, f"cut before layer {cut} ({graph.layers[cut].name}) is not legal")
    return boundaries


def _check_devices(plan: Plan) -> None:
    used = [name for stage in plan.stages for name in stage.devices]
    looped = plan.schedule.name in LOOPED and all(len(stage.devices) == 1 for stage in plan.stages)
    _require(looped or len(set(used)) == len(used), "a device is used twice")
    left_out = {excluded.device for excluded in plan.excluded}
    known = {device.name for device in plan.cluster.devices}
    _require(set(used) | left_out == known and not set(used) & left_out, "not every device is used or excluded once")
    _require(plan.job.stages in (None, len(plan.stages)), f"{plan.job.stages} stages were asked for")


def _check_wishes(plan: Plan) -> None:
    """Pins, bans and layers that stay together, by name, and that all stages recompute."""
    def stages_of(name: str) -> list[Stage]:
        return [s for s in plan.stages if any(n == name or n.startswith(f"{name}.") for n in s.layers)]

    wanted = {"never": (False,), "always": (True,), "auto": (False, True)}[plan.job.recompute]
    _require(all(stage.recompute in wanted for stage in plan.stages), f"--recompute {plan.job.recompute} is not kept")
    for name, device in plan.job.pins:
        _require(all(device in stage.devices for stage in stages_of(name)), f"{name} is not on {device}")
    for name, device in plan.job.forbidden:
        _require(not any(device in stage.devices for stage in stages_of(name)), f"{name} is on {device}")
    for names in plan.job.together:
        found = {stage.index for name in names for stage in stages_of(name)}
        _require(len(found) == 1, f"{', '.join(names)} are in stages {sorted(found)}")


def _device(plan: Plan, stage: Stage) -> Device:
    """The stage's first device; the others are its like."""
    return plan.cluster.device(stage.devices[0])


def _way(stage: Stage) -> Way:
    return Way(tensor=stage.tensor_parallel, data=stage.data_parallel, recompute=stage.recompute)


def _inside(plan: Plan, stage: Stage) -> Link | None:
    """The link of a stage's devices, which are of one kind and all joined by equal ones."""
    devices = [plan.cluster.device(name) for name in stage.devices]
    where = f"stage {stage.index}"
    _require(len(devices) == _way(stage).width, f"{where}: {len(devices)} devices for {_way(stage)}")
    figures = {(device.kind, device.speed, device.memory_bytes) for device in devices}
    _require(len(figures) == 1, f"{where}: its devices differ: {figures}")
    links = [plan.cluster.link(one, other) for one, other in combinations(devices, 2)]
    rates = {(link.latency_seconds, link.bandwidth_bytes_per_second) for link in links}
    _require(len(rates) <= 1, f"{where}: the links between its devices differ")
    return links[0] if links else None


def _check_times(plan: Plan, candidate: Candidate, stage: Stage, first: int, last: int) -> None:
    training = plan.job.mode == "train"
    where, way, inside = f"stage {stage.index}", _way(stage), _inside(plan, stage)
    dtype = candidate.profile.kind(_device(plan, stage).kind).dtype if plan.job.stage_dtype == "auto" else ""
    _require(stage.dtype == dtype, f"{where}: computes in {stage.dtype!r}, not in {dtype!r}")
    times = layer_times(candidate, _device(plan, stage), inside, way, training=training)
    _same(f"{where} forward", stage.forward_seconds, math.fsum(times.forward[first:last]))
    _same(f"{where} backward", stage.backward_seconds, math.fsum(times.backward[first:last]))
    update = math.fsum(times.optimizer[first:last])
    if training:
        update += gradient_seconds(inside, way, way_facts(candidate.graph, first, last, way).trainable)
    partners, exchange = _exchange(plan, candidate.graph, stage.index) if training else ((), 0.0)
    _same(f"{where} optimizer", stage.optimizer_seconds, update + exchange)
    _require(stage.exchanges_with == partners, f"{where}: exchanges with {partners}, not {stage.exchanges_with}")


def _exchange(plan: Plan, graph: Graph, index: int) -> tuple[tuple[int, ...], float]:
    """Partners and seconds of the exchange of tied weights' gradients of one stage."""
    stage_of = {name: stage.index for stage in plan.stages for name in stage.layers}
    partners: set[int] = set()
    seconds = 0.0
    for number, weight in enumerate(graph.weights):
        holders = sorted({stage_of[layer.name] for layer in graph.layers if number in layer.weights})
        if not weight.trainable or weight.is_buffer or index not in holders or len(holders) < 2:
            continue
        others = holders[1:] if index == holders[0] else [holders[0]]
        others = [other for other in others if plan.ranks[other] != plan.ranks[index]]  # one device has one copy
        partners.update(others)
        seconds += sum(_message_seconds(plan, index, other, 2 * weight.bytes) for other in others)
    return tuple(sorted(partners)), seconds


def _message_seconds(plan: Plan, one: int, other: int, num_bytes: int) -> float:
    """Over the direct link, or hop by hop along the pipeline where there is none."""
    devices = [_device(plan, stage) for stage in plan.stages]
    try:
        return plan.cluster.link(devices[one], devices[other]).seconds(num_bytes)
    except KeyError:
        low, high = sorted((one, other))
        path = [devices[k] for k in range(low, high + 1) if k == low or plan.ranks[k] not in plan.ranks[low:k]]
        return sum(plan.cluster.link(near, far).seconds(num_bytes) for near, far in pairwise(path))


def _check_memory(plan: Plan, candidate: Candidate, boundaries: list[int]) -> None:
    rules = Rules.of(plan.job, plan.schedule.name, plan.schedule.num_microbatches, plan.cluster)
    devices, kept = tuple(stage.devices[0] for stage in plan.stages), in_flight_of(rules, plan.ranks)
    alone = tuple(
        stage_memory(way_facts(held_graph(candidate.graph, stage.dtype), first, last, _way(stage)), rules, in_flight)
        for stage, first, last, in_flight in zip(plan.stages, boundaries, boundaries[1:], kept, strict=False)
    )
    needed = dict.fromkeys(devices, 0)
    for stage, found in zip(plan.stages, together(alone, devices), strict=True):
        device, where = _device(plan, stage), f"stage {stage.index}"
        _require(stage.memory == found, f"{where}: memory is {found}, not {stage.memory}")
        _require(stage.peak_bytes == found.total, f"{where}: peak is {found.total}, not {stage.peak_bytes}")
        _require(stage.parameter_bytes == found.parameters, f"{where}: parameters are {found.parameters}")
        _require(stage.capacity_bytes == device.memory_bytes, f"{where}: {device.name} has {device.memory_bytes}")
        needed[device.name] += found.total
        fits = needed[device.name] <= device.memory_bytes
        _require(fits, f"{where}: {needed[device.name]} bytes do not fit on {device.name}")


def _check_transfers(plan: Plan, graph: Graph, boundaries: list[int]) -> None:
    expected: list[tuple[str, int, int, int, float, float]] = []
    for index, cut in enumerate(boundaries[1:-1]):
        if plan.ranks[index] == plan.ranks[index + 1]:
            continue  # what stays on a device does not travel
        link = plan.cluster.link(_device(plan, plan.stages[index]), _device(plan, plan.stages[index + 1]))
        for value in graph.values:
            if value.producer < cut <= max(value.consumers):
                claims = plan.transfers[len(expected) :]
                num_bytes, seconds = _one_way(plan, graph, value, link, claims[0].codec if claims else "none")
                returns = plan.job.mode == "train" and value.differentiable
                expected.append((value.name, index, index + 1, num_bytes, seconds, seconds if returns else 0.0))
    _require(len(plan.transfers) == len(expected), f"{len(expected)} transfers are needed, not {len(plan.transfers)}")
    for transfer, (name, source, target, num_bytes, seconds, backward) in zip(plan.transfers, expected, strict=True):
        claimed = (transfer.tensor, transfer.from_stage, transfer.to_stage, transfer.bytes)
        _require(claimed == (name, source, target, num_bytes), f"transfer {claimed} is of {name}, {num_bytes} bytes")
        _same(f"transfer of {name}", transfer.seconds, seconds)
        _same(f"return of {name}", transfer.backward_seconds, backward)


def _one_way(plan: Plan, graph: Graph, value: Value, link: Link, codec: CodecName) -> tuple[int, float]:
    """Bytes and seconds of a value over a link by a codec, which the job has to allow."""
    if codec == "none":
        wanted = plan.job.compress
        fixed = wanted != "none" and wanted != "auto" and is_compressible(value, graph, wanted)
        _require(not fixed, f"{value.name} travels as it is, not by {wanted}")
        return value.bytes, link.latency_seconds + value.bytes / link.bandwidth_bytes_per_second
    allowed = {each.name: each for each in codecs_of(plan.job, plan.cluster)}
    _require(codec in allowed and is_compressible(value, graph, codec), f"{value.name} must not travel by {codec}")
    num_bytes = wire_bytes(codec, value.shape, ELEMENT_BYTES[value.dtype])
    coding = allowed[codec].start_seconds + value.bytes / allowed[codec].bytes_per_second
    return num_bytes, link.latency_seconds + num_bytes / link.bandwidth_bytes_per_second + coding


def _check_schedule(plan: Plan, candidate: Candidate) -> None:
    schedule, training = plan.schedule, plan.job.mode == "train"
    _require(schedule.num_microbatches == candidate.num_microbatches, "the candidate has another micro-batch count")
    _require(plan.job.batch == candidate.batch, f"the candidate's batch is {candidate.batch}")
    _require(plan.job.microbatches in (None, schedule.num_microbatches), "another micro-batch count was asked for")
    _require(not training or plan.job.schedule in (None, schedule.name), "another schedule was asked for")
    expected = warmup(schedule.name, len(plan.stages), schedule.num_microbatches, training, plan.ranks)
    _require(schedule.warmup == expected, f"warm-up is {expected}, not {schedule.warmup}")


def _check_step(plan: Plan, candidate: Candidate) -> None:
    timeline, prediction = simulate(plan), plan.prediction
    _same("step", prediction.step_seconds, timeline.step_seconds)
    if plan.job.mode == "infer":
        times = [stage_seconds(plan, stage) for stage in plan.stages]
        _same("step", prediction.step_seconds, sum(times) + (plan.schedule.num_microbatches - 1) * max(times))
    _same("throughput", prediction.throughput_per_second, candidate.batch / timeline.step_seconds)
    forward = sum(stage.forward_seconds for stage in plan.stages) + sum(t.seconds for t in plan.transfers)
    _same("latency", prediction.latency_seconds, forward)
    num, busy = plan.schedule.num_microbatches, 0.0
    for stage in plan.stages:
        computing = num * (stage.forward_seconds + stage.backward_seconds) + stage.optimizer_seconds
        _require(
            math.isclose(stage.utilisation, computing / timeline.step_seconds, rel_tol=1e-6),
            f"stage {stage.index}: utilisation is {computing / timeline.step_seconds}, not {stage.utilisation}",
        )
        busy += computing
    idle = 1 - busy / (timeline.step_seconds * len(plan.devices_by_rank))
    _require(abs(prediction.bubble_fraction - max(0.0, idle)) < 1e-6, f"bubble is {idle}")


def _rent(plan: Plan) -> float:
    """US dollars per hour of the devices in use."""
    return sum(plan.cluster.device(name).rent_usd_per_hour or 0.0 for stage in plan.stages for name in stage.devices)


def _amounts(plan: Plan, seconds: float) -> dict[str, float]:
    """What can be made least, if a step takes so long."""
    return {
        "usd_per_step": _rent(plan) * seconds / 3600,
        "memory_share": max(stage.peak_bytes / stage.capacity_bytes for stage in plan.stages),
        "devices": sum(len(stage.devices) for stage in plan.stages),
    }


def _check_limits(plan: Plan) -> None:
    """A step's time and the rent; the formula of latency is of one request, the whole batch at once."""
    seconds = plan.proof.objective_seconds if plan.job.objective == "latency" else plan.prediction.step_seconds
    limits = (("a step", seconds, plan.job.max_step_seconds), ("the rent", _rent(plan), plan.job.max_usd_per_hour))
    for what, value, most in limits:
        _require(most is None or value <= most * (1 + TOLERANCE), f"{what} is {value}, at most {most} is allowed")


def _check_proof(plan: Plan) -> None:
    times, proof = [stage_seconds(plan, stage) for stage in plan.stages], plan.proof
    repeats = 0 if plan.job.objective == "latency" else plan.schedule.num_microbatches - 1
    objective = sum(times) + repeats * round_seconds(plan) + last_update_seconds(plan)
    if plan.schedule.name in LOOPED:  # several stages per device, or a backward in two: the formula is not theirs
        objective = plan.prediction.step_seconds
    _same("objective", proof.objective_seconds, objective)
    _require(proof.bound_seconds <= objective * (1 + 1e-6), f"bound {proof.bound_seconds} above objective {objective}")
    value, bound = (objective, proof.bound_seconds) if proof.least is None else (proof.least.value, proof.least.bound)
    _same("gap", 1 + proof.gap, max(1.0, value / bound) if bound else math.inf if value else 1.0)
    if proof.least is not None:
        _same(proof.least.quantity, value, _amounts(plan, objective)[proof.least.quantity])
        _require(bound <= value, f"the bound {bound} is above {value} {proof.least.quantity}")
    if proof.outcome == "proven":
        _require(proof.gap <= plan.job.gap * (1 + 1e-6) + 2e-5, f"a gap of {proof.gap} is not proven")
