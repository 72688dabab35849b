"""What a plan says in words: the verdict, and why devices are left out."""

from __future__ import annotations

from itertools import groupby, pairwise

from autopart.planning.aiming.quantities import amount_of, rent_of
from autopart.planning.costing.groups import group_devices
from autopart.planning.costing.holding import held_on
from autopart.planning.costing.memory import Rules, stage_facts, stage_memory
from autopart.planning.costing.wishes import apart_devices
from autopart.planning.searching.chain import best_path, is_exact
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.optimum import instances_of, is_large, options_of
from autopart.planning.searching.options import LOOPED, Option, rank, schedules
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Baseline, Excluded, Proof
from autopart.schema.problem import Candidate
from autopart.units import format_bytes, format_seconds

__all__ = ["reasons", "verdict_of"]


def reasons(
    option: Option, candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, proof: Proof, effort: Effort
) -> tuple[Excluded, ...]:
    """Why every device that an option leaves out is left out, each with a number, over all candidates."""
    used = set(option.layout.used)
    excluded: dict[str, str] = {}
    groups = group_devices(cluster, apart_devices(job, cluster))
    solved = len(used) < len(cluster.devices) and proof.least is None and job.method == "optimal"
    instances = [
        (candidate, instance)
        for candidate in (candidates if solved and not effort.is_over() else ())
        for instance in instances_of(candidate, cluster, job, every_schedule=True)
    ]
    for number, group in enumerate(groups):
        left_out = [device.name for device in group.devices if device.name not in used]
        if left_out:
            at_least = [0] * len(groups)
            at_least[number] = group.size - len(left_out) + 1
            reason = _reason(option, cluster, job, tuple(at_least), group.device.name, proof, instances, effort)
            excluded |= dict.fromkeys(left_out, reason)
    return tuple(Excluded(device=d.name, reason=excluded[d.name]) for d in cluster.devices if d.name in excluded)


def _reason(
    option: Option, cluster: Cluster, job: Job, at_least: tuple[int, ...], name: str, proof: Proof,
    instances: list[tuple[Candidate, Instance]], effort: Effort,
) -> str:
    if job.method != "optimal":
        return f"method '{job.method}' fills {len(option.layout.used)} devices without it"
    if proof.least is not None:
        return _no_less(proof)
    if option.layout.schedule in LOOPED:
        return f"no placement tried with it is faster; no plan at all is more than {proof.gap:.2%} faster"
    merged = any(instance.cluster != cluster for _, instance in instances)
    if not instances or merged or any(is_large(instance) for _, instance in instances) or effort.is_over():
        return f"does not help: no plan, with it or without, is more than {proof.gap:.2%} faster"
    others = [
        other
        for candidate, each in instances
        for other in options_of(
            candidate, cluster, job, each, best_path(each, at_least=at_least, out_of_time=effort.is_over)
        )
    ]
    if not others and effort.is_over():
        return f"does not help: no plan, with it or without, is more than {proof.gap:.2%} faster"
    if not others:
        return _cannot_help(option, cluster, job, name)
    best = min(others, key=lambda other: rank(other, job))
    factor = rank(best, job)[0] / rank(option, job)[0]
    exact = all(
        is_exact(each.counts, each.widest) and not each.arcs.are_late and not each.in_phases for _, each in instances
    )
    is_best = exact and not effort.is_over()
    which = "the best plan" if is_best else "the best plan found"
    seconds = format_seconds(rank(best, job)[0])
    if factor < 1.005:
        return f"does not help: {which} that uses it takes as long ({seconds}, {factor:.3f}x)"
    return f"{which} that uses it is {factor:.2f}x slower ({seconds} a step)"


def _no_less(proof: Proof) -> str:
    assert proof.least is not None, "something else than time is made least"
    less = "" if proof.gap < 5e-5 else f"more than {proof.gap:.2%} "
    words = {"usd_per_step": f"is {less}cheaper", "memory_share": f"needs a {less}smaller share of a device's memory",
             "devices": "takes fewer devices"}
    return f"does not help: no plan, with it or without, {words[proof.least.quantity]}"


def _cannot_help(option: Option, cluster: Cluster, job: Job, name: str) -> str:
    graph, device = option.candidate.graph, cluster.device(name)
    rules = Rules.of(job, schedules(job)[0], option.layout.num_microbatches, cluster)
    held = held_on(option.candidate, device.kind)
    ends = (0, *sorted(set(graph.legal_cuts)), len(graph.layers))
    smallest = min(
        stage_memory(stage_facts(held, first, last), rules, 1).total
        for first, last in pairwise(ends)
    )
    if smallest > device.memory_bytes:
        return (
            f"does not help: the smallest stage needs {format_bytes(smallest)}, "
            f"it has {format_bytes(device.memory_bytes)}"
        )
    num_cuts = len(set(graph.legal_cuts))
    limit = "" if job.max_usd_per_hour is None else f" for {job.max_usd_per_hour:g} $/h"
    return f"does not help: no plan that uses it fits{limit} ({num_cuts} legal cuts, {len(cluster.devices)} devices)"


def verdict_of(
    option: Option, cluster: Cluster, job: Job, baselines: tuple[Baseline, ...], excluded: tuple[Excluded, ...],
    single_name: str,
) -> str:
    """One sentence: what to use, what to leave out and why, how much faster than one device and an even split."""
    by_name = {baseline.name: baseline for baseline in baselines}
    layout = option.layout
    use = f"Use {_names(layout.used)}"
    if layout.num_stages == 1:
        use += _as_one_stage(option, cluster, job)
    else:
        use += f" with {layout.num_microbatches} micro-batch{'es' if layout.num_microbatches > 1 else ''}"
    parts = [f"{use}, {format_seconds(option.step_seconds)} a step{_amount(option, cluster, job)}"]
    if len(layout.used) > 1:
        parts.append(_against_single(by_name["single-device"], single_name))
    if job.method != "even" and len(cluster.devices) > 1:
        parts.append(_against("an even split", by_name["even"]))
    text = ", ".join(part for part in parts if part)
    for reason, group in groupby(excluded, key=lambda each: each.reason):
        text += f"; leave out {_names(tuple(each.device for each in group))}: {reason}"
    return text + "."


def _as_one_stage(option: Option, cluster: Cluster, job: Job) -> str:
    """How the devices of the only stage are used; that splitting does not pay is said only where it was tried."""
    if len(option.layout.used) > 1:
        way = option.layout.way(0)
        copies, shared = f"{way.data} replicas", f"{way.tensor} devices that share its layers"
        return " as one stage of " + " of ".join([copies] * (way.data > 1) + [shared] * (way.tensor > 1))
    if len(cluster.devices) == 1:
        return ", the only device there is"
    if job.stages == 1 or job.method != "optimal":
        return f" alone, as {'--stages 1' if job.stages == 1 else job.method} has it"
    return f" alone: {'one device is enough' if job.objective == 'devices' else 'splitting does not pay'}"


def _amount(option: Option, cluster: Cluster, job: Job) -> str:
    """What the plan has least of, where that is not time, and what it costs where that is limited."""
    if job.objective == "cost" or job.max_usd_per_hour is not None:
        rent = rent_of(option, cluster)
        return f" at {rent:.4g} $/h ({rent * option.step_seconds / 3600:.3g} $ a step)"
    if job.objective == "memory":
        return f" and at most {amount_of(option, cluster, job, option.step_seconds):.1%} of a device's memory"
    return ""


def _names(names: tuple[str, ...]) -> str:
    shown = list(names) if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _against_single(single: Baseline, name: str) -> str:
    if single.factor is None:
        return f"which no single device can hold ({single.reason})"
    return _against(f"the best single device ({name})", single)


def _against(what: str, baseline: Baseline) -> str:
    if baseline.factor is None:
        return f"where {what} does not fit" if baseline.reason else ""
    if abs(baseline.factor - 1) < 0.005:
        return f"as fast as {what}"
    if baseline.factor < 1:
        return f"{1 / baseline.factor:.2f}x slower than {what}"
    return f"{baseline.factor:.2f}x faster than {what}"
