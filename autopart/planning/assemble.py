"""From the option chosen to the plan on paper."""

from __future__ import annotations

from itertools import pairwise

from autopart.planning.costing.codecs import codecs_of, sent
from autopart.planning.costing.costs import StageCost
from autopart.planning.costing.groups import link_between
from autopart.planning.searching.options import Option
from autopart.planning.simulating.simulate import warmup
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import (
    Baseline,
    Excluded,
    ModelSummary,
    Origin,
    Plan,
    PlanWarning,
    Prediction,
    Proof,
    Schedule,
    Stage,
    Transfer,
)

__all__ = ["assemble", "prediction_of"]


def assemble(
    option: Option, cluster: Cluster, job: Job, *, verdict: str, proof: Proof, baselines: tuple[Baseline, ...],
    excluded: tuple[Excluded, ...], warnings: tuple[PlanWarning, ...],
) -> Plan:
    """The plan of an option."""
    graph, layout = option.candidate.graph, option.layout
    return Plan(
        verdict=verdict,
        model=ModelSummary(
            name=graph.model, fingerprint=graph.fingerprint,
            num_layers=len(graph.layers), num_parameters=graph.num_parameters,
        ),
        job=job,
        cluster=cluster,
        stages=tuple(_stage(option, cluster, index, cost) for index, cost in enumerate(option.costs)),
        transfers=_transfers(option, cluster, job),
        schedule=Schedule(
            name=layout.schedule,
            num_microbatches=layout.num_microbatches,
            warmup=warmup(
                layout.schedule, layout.num_stages, layout.num_microbatches, job.mode == "train", layout.ranks
            ),
        ),
        prediction=prediction_of(option, cluster),
        proof=proof,
        baselines=baselines,
        excluded=excluded,
        warnings=warnings,
        origin=_origin(option, cluster),
    )


def _stage(option: Option, cluster: Cluster, index: int, cost: StageCost) -> Stage:
    first, last, device = option.layout.stages[index]
    graph, way = option.candidate.graph, option.layout.way(index)
    used = sorted({weight for layer in graph.layers[first:last] for weight in layer.weights})
    placed = cluster.device(device)
    row = option.candidate.profile.kind(placed.kind)
    return Stage(
        index=index,
        devices=option.layout.devices_of(index),
        tensor_parallel=way.tensor,
        data_parallel=way.data,
        recompute=way.recompute,
        layers=tuple(layer.name for layer in graph.layers[first:last]),
        weights=tuple(graph.weights[weight].name for weight in used),
        parameter_bytes=cost.memory.parameters,
        peak_bytes=cost.memory.total,
        capacity_bytes=cost.capacity_bytes,
        forward_seconds=cost.forward_seconds,
        backward_seconds=cost.backward_seconds,
        optimizer_seconds=cost.optimizer_seconds,
        exchanges_with=cost.exchanges_with,
        utilisation=option.busy_seconds(index) / option.step_seconds if option.step_seconds else 1.0,
        memory=cost.memory,
        pace_seconds=row.pace_seconds,
        computes_as=row.computes_as,
        dtype=row.dtype,
        layer_seconds=tuple(each / placed.speed for each in row.forward_seconds[first:last]) if way.width == 1 else (),
    )


def _transfers(option: Option, cluster: Cluster, job: Job) -> tuple[Transfer, ...]:
    layout = option.layout
    transfers, codecs = [], codecs_of(job, cluster)
    for index in range(1, layout.num_stages):
        if layout.devices[index] == layout.devices[index - 1]:
            continue  # what stays on a device does not travel
        link = cluster.link(cluster.device(layout.devices[index - 1]), cluster.device(layout.devices[index]))
        for value in option.candidate.graph.crossing(layout.boundaries[index]):
            way = sent(value, option.candidate.graph, link, codecs)
            returns = job.mode == "train" and value.differentiable
            transfers.append(
                Transfer(
                    tensor=value.name, from_stage=index - 1, to_stage=index, bytes=way.num_bytes,
                    seconds=way.seconds, backward_seconds=way.seconds if returns else 0.0, codec=way.codec.name,
                )
            )
    return tuple(transfers)


def prediction_of(option: Option, cluster: Cluster) -> Prediction:
    """What a step of the option takes and costs."""
    step, batch = option.step_seconds, option.candidate.batch
    busy = sum(option.busy_seconds(index) for index in range(option.layout.num_stages))
    rents = [cluster.device(name).rent_usd_per_hour for name in option.layout.used]
    known = [rent for rent in rents if rent is not None]
    return Prediction(
        step_seconds=step,
        latency_seconds=sum(cost.forward_seconds + cost.receive_seconds for cost in option.costs),
        throughput_per_second=batch / step,
        bubble_fraction=max(0.0, 1.0 - busy / (step * len(set(option.layout.devices)))),
        cost_per_million=sum(known) * step / 3600 / batch * 1e6 if len(known) == len(rents) else None,
    )


def _origin(option: Option, cluster: Cluster) -> Origin:
    """Where the times of the devices and links in use come from."""
    devices = [cluster.device(name) for name in option.layout.devices]
    kinds = [option.candidate.profile.kind(name) for name in dict.fromkeys(device.kind for device in devices)]
    origins = {kind.origin for kind in kinds}
    links = dict.fromkeys(
        f"{link.ends[0]} - {link.ends[1]}: {link.origin}, {link.source}"
        for link in (link_between(cluster, *pair) for pair in pairwise(devices))
        if link is not None
    )
    return Origin(
        profile=origins.pop() if len(origins) == 1 else "mixed",
        bases=tuple(f"{kind.kind}: {kind.origin}, {kind.basis}" for kind in kinds),
        links=tuple(links),
    )
