"""The verb compare: a plan for each of several sets of devices, and what every device of a set adds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from autopart import modelsource, planning, profiling
from autopart.comparing.search import searched
from autopart.errors import InfeasibleError, UsageError
from autopart.generating import requests_of
from autopart.modelsource import Source
from autopart.progress import Progress, silent
from autopart.schema.comparison import Added, Comparison, Criterion, DeviceSet
from autopart.schema.device import Cluster
from autopart.schema.generation import Requests
from autopart.schema.job import Job, usual_optimizer
from autopart.schema.plan import Plan
from autopart.verbs import plan_source

__all__ = ["compare_source", "mark_pareto", "row_of"]

Planner = Callable[[Cluster], Plan]


def compare_source(
    source: Source, device_sets: Sequence[str | Cluster] = (), *, catalogue: str = "", most_sets: int = 24,
    max_memory: Sequence[str] = (), refresh: bool = False, progress: Progress = silent, **words: Any,
) -> Comparison:  # fmt: skip
    """The best plan for each set of devices, side by side; a set on which nothing fits is a row with the reason.

    Plans are not verified: nothing is split here.

    Args:
        source: the model.
        device_sets: device lists as ``--devices`` takes them, names of cluster files (``rack.yaml``), or clusters.
        catalogue: ``budget 2 $/h``: sets of rented kinds within it, instead of or beside the others.
        most_sets: how many sets of the catalogue are planned.
        max_memory: caps, of devices that a set has.
        refresh: measure again what is in the cache.
        progress: told about every set.
        words: the job's, as for ``plan_source``.

    Raises:
        UsageError: there is nothing to compare, or a word is wrong.
    """
    generates = words.get("mode") == "generate"
    requests = requests_of(words)[0] if generates else None
    words = words if generates else _spelled_out(words, source)
    found, remarks = searched(source, catalogue, most_sets, progress, words) if catalogue else ((), ())
    wanted = {_name(each): each for each in (*device_sets, *found)}
    if not wanted:
        raise UsageError("there is nothing to compare; give --devices A --devices B, or --catalogue 'budget 2 $/h'")
    per_sample = None if generates else _tokens_of(source)
    rents = words.pop("rents", ())
    plan = _remembered(lambda cluster: plan_source(source, devices=cluster, refresh=refresh, verify=False, **words))
    rows = []
    for done, (name, devices) in enumerate(wanted.items()):
        progress("comparing", done, len(wanted))
        bare = _cluster(devices, source)
        cluster = profiling.read_cluster(bare, max_memory=_caps_of(bare, max_memory))
        cluster = _with_rents(cluster, rents)
        row = _row(name, cluster, plan, adds=not catalogue or name not in found)
        rows.append(_with_tokens(row, per_sample))
    progress("comparing", len(wanted), len(wanted))
    objective = words.get("objective", "throughput")
    criteria = _criteria(rows, objective)
    ordered = sorted(mark_pareto(rows, criteria), key=functools.partial(_rank, objective))
    return Comparison(
        model=source.name, job=_job(words, requests), criteria=criteria, sets=tuple(ordered),
        remarks=(*remarks, *_unpriced(rows)),
        requests=requests, tokens_per_sample=per_sample,
    )


def _spelled_out(words: dict[str, Any], source: Source) -> dict[str, Any]:
    """The words with those that follow from the model and the mode."""
    return {
        **words, "batch": words.get("batch") or modelsource.batch_of(source),
        "optimizer": words.get("optimizer") or usual_optimizer(words.get("mode", "infer")),
    }  # fmt: skip


def _cluster(devices: str | Cluster, source: Source) -> Cluster:
    folder = modelsource.folder_of(source)
    if isinstance(devices, str) and devices.endswith((".yaml", ".yml")):
        return profiling.read_cluster(cluster_file=Path(devices), folder=folder)
    return profiling.read_cluster(devices, folder=folder)


def _tokens_of(source: Source) -> int | None:
    """Of one sample, where the model is given sequences of integers."""
    leaves = pytree.tree_leaves((source.args, source.kwargs))
    sequences = (each for each in leaves if isinstance(each, torch.Tensor) and each.dim() == 2)
    return next((each.shape[1] for each in sequences if each.dtype in (torch.int64, torch.int32)), None)


def _with_tokens(row: DeviceSet, per_sample: int | None) -> DeviceSet:
    if per_sample is None or row.cost_per_million is None:
        return row
    return dataclasses.replace(row, cost_per_million_tokens=row.cost_per_million / per_sample)


def _job(words: dict[str, Any], requests: Requests | None) -> Job:
    if requests is not None:
        words = {"batch": requests.concurrency, **requests_of(words)[1]}
    try:
        return Job(**words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}; see `autopart compare --help`") from error


def _name(devices: str | Cluster) -> str:
    if isinstance(devices, str):
        return devices
    return ",".join(device.name for device in devices.devices)


def _caps_of(cluster: Cluster, caps: Sequence[str]) -> tuple[str, ...]:
    """The caps of devices and kinds that are in this set: a cap may be about another one."""
    known = {name for device in cluster.devices for name in (device.name, device.kind)}
    words = [word for part in caps for word in part.split(",")]
    return tuple(word for word in words if word.partition("=")[0].strip() in known)


def _unpriced(rows: Sequence[DeviceSet]) -> tuple[str, ...]:
    """What to give, so that prices are compared too."""
    names = [row.name for row in rows if row.fits and row.rent_usd_per_hour is None]
    if not names or len(names) == sum(row.fits for row in rows):
        return ()
    return (
        f"prices, of which the best are not marked: no rent is known of a device of {', '.join(names)}; give it, for "
        "example --rent t4=0.40$/h",
    )


def _with_rents(cluster: Cluster, rents: Sequence[tuple[str, float]]) -> Cluster:
    """The cluster with the rents of its devices and kinds that the user gives."""
    given = dict(rents)
    devices = tuple(
        dataclasses.replace(
            each, rent_usd_per_hour=given.get(each.name, given.get(each.kind, each.rent_usd_per_hour))
        )
        for each in cluster.devices
    )
    return dataclasses.replace(cluster, devices=devices)


def _remembered(plan: Planner) -> Planner:
    """Plans a cluster once; devices that differ in name only are the same."""
    known: dict[tuple[object, ...], Plan | InfeasibleError] = {}

    def find(cluster: Cluster) -> Plan:
        key = (
            tuple(sorted(
                (d.kind, d.node, d.memory_bytes, d.speed, d.backend, d.rent_usd_per_hour or 0.0)
                for d in cluster.devices
            )),
            tuple(link for link in cluster.links if link.level == "device"),
            tuple(sorted(device.name for device in cluster.devices if device.backend != "absent")),
        )
        if key not in known:
            try:
                known[key] = plan(cluster)
            except InfeasibleError as error:
                known[key] = error
        found = known[key]
        if isinstance(found, InfeasibleError):
            raise found
        return found

    return find


def _row(name: str, cluster: Cluster, plan: Planner, *, adds: bool) -> DeviceSet:
    try:
        found = plan(cluster)
    except InfeasibleError as error:
        return DeviceSet(name=name, num_devices=len(cluster.devices), reason=str(error))
    row = row_of(name, found)
    return dataclasses.replace(row, adds=_adds(cluster, found, plan)) if adds else row


def row_of(name: str, plan: Plan) -> DeviceSet:
    """The figures of a plan as a row."""
    used = tuple(device for stage in plan.stages for device in stage.devices)
    tightest = min(plan.stages, key=lambda stage: (stage.capacity_bytes - stage.peak_bytes) / stage.capacity_bytes)
    rents = [plan.cluster.device(device).rent_usd_per_hour for device in used]
    known = [rent for rent in rents if rent is not None]
    prediction, given = plan.prediction, plan.generation
    rent = sum(known) if len(known) == len(rents) else None
    rate = _rate_of(plan)
    return DeviceSet(
        name=name, num_devices=len(plan.cluster.devices), used=used,
        left_out=tuple(each.device for each in plan.excluded), num_stages=len(plan.stages),
        num_microbatches=plan.schedule.num_microbatches, step_seconds=prediction.step_seconds,
        throughput_per_second=rate,
        latency_seconds=prediction.latency_seconds if given is None else given.time_to_first_token_seconds,
        step_token_seconds=None if given is None else given.time_per_output_token_seconds,
        bubble_fraction=prediction.bubble_fraction, headroom_bytes=tightest.capacity_bytes - tightest.peak_bytes,
        headroom_share=1 - tightest.peak_bytes / tightest.capacity_bytes,
        rent_usd_per_hour=rent, cost_per_million=None if rent is None else rent / 3600 / rate * 1e6,
        bottleneck=_bottleneck(plan), gap=plan.proof.gap,
        origin=plan.origin.profile,
    )


def _rate_of(plan: Plan) -> float:
    """Samples per second, or new tokens."""
    return plan.prediction.throughput_per_second if plan.generation is None else plan.generation.tokens_per_second


def _bottleneck(plan: Plan) -> str:
    explanation = planning.explain(plan)
    stage = explanation.stages[explanation.bottleneck]
    if stage.receive_seconds > 0.5 * stage.stage_seconds:
        return f"link into {'+'.join(stage.devices)}"
    return "+".join(stage.devices)


def _adds(cluster: Cluster, found: Plan, plan: Planner) -> tuple[Added, ...]:
    """For every kind of device in use, what the last one of it adds."""
    used = [cluster.device(name) for stage in found.stages for name in stage.devices if _has(cluster, name)]
    last = {(device.kind, device.node, device.memory_bytes, device.speed): device for device in used}
    rows = []
    for device in last.values() if len(cluster.devices) > 1 else ():
        rest = tuple(each for each in cluster.devices if each is not device)
        try:
            without = _rate_of(plan(dataclasses.replace(cluster, devices=rest)))
        except InfeasibleError:
            rows.append(Added(device=device.name, kind=device.kind, factor=None))
        else:
            factor = _rate_of(found) / without
            rows.append(Added(device=device.name, kind=device.kind, factor=factor))
    return tuple(rows)


def _has(cluster: Cluster, name: str) -> bool:
    return any(device.name == name for device in cluster.devices)


def _criteria(rows: Sequence[DeviceSet], objective: Criterion) -> tuple[Criterion, ...]:
    """What the job wants, and what it takes: the rent where all sets have one, else the number of devices.

    Latency is not set against throughput: it is of one micro-batch, and those differ in size from set to set.
    """
    priced = all(row.rent_usd_per_hour is not None for row in rows if row.fits)
    return (objective, "rent" if priced else "devices")


def mark_pareto(rows: Sequence[DeviceSet], criteria: Sequence[Criterion]) -> tuple[DeviceSet, ...]:
    """The rows, those that fit and that no other is better than marked."""
    scores = {id(row): _score(row, criteria) for row in rows if row.fits}

    def beaten(row: DeviceSet) -> bool:
        mine = scores[id(row)]
        return any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in scores.values()
        )

    return tuple(dataclasses.replace(row, pareto=row.fits and not beaten(row)) for row in rows)


def _score(row: DeviceSet, criteria: Sequence[Criterion]) -> tuple[float, ...]:
    """Smaller is better."""
    values: dict[Criterion, float] = {
        "throughput": -(row.throughput_per_second or 0.0), "latency": row.latency_seconds or 0.0,
        "rent": row.rent_usd_per_hour or 0.0, "devices": float(len(row.used)),
    }
    return tuple(values[criterion] for criterion in criteria)


def _rank(objective: Criterion, row: DeviceSet) -> tuple[bool, float, str]:
    """Those that fit first, by what the job wants; of equals by name."""
    return (not row.fits, _score(row, (objective,))[0], row.name)
