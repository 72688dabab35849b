"""The best really different plans, and what each trades: for people who would rather have one device less."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from autopart.errors import InfeasibleError, UsageError
from autopart.planning.costing.groups import group_devices
from autopart.planning.looped import is_looped
from autopart.planning.planner import plan
from autopart.progress import Progress, silent
from autopart.schema.alternatives import Alternative
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Excluded, Plan
from autopart.schema.problem import Candidate
from autopart.units import format_bytes, format_seconds

__all__ = ["plan_top"]


def plan_top(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, num_plans: int, *,
    best: Plan | None = None, clock: Callable[[], float] = time.perf_counter, progress: Progress = silent,
) -> tuple[Alternative, ...]:
    """At most ``num_plans`` plans, the best first, no two with as many devices of each group, stages and micro-batches.

    Every plan but the first is the best one, with its own proof, of the problem less something that a better one uses:
    a device of a group, a stage, a micro-batch count or a schedule.  So the second is the best of all plans that differ
    from the first in one of these; later ones are the best among what such steps lead to.  The time limit is for each.
    The best one may be handed in, if it is known.

    Raises:
        UsageError: the candidates do not fit the job or the cluster, or no plan is asked for.
        InfeasibleError: nothing fits.
    """
    if num_plans < 1:
        raise UsageError(f"at least one plan has to be asked for, not {num_plans}; give --top 1 or more")
    if num_plans > 1 and is_looped(job):
        raise UsageError(f"--schedule {job.schedule} is planned without alternatives; leave --top away")
    best = best or plan(candidates, cluster, job, clock=clock, progress=progress)
    cluster = best.cluster
    found, waiting = {_character(best, cluster): best}, _Waiting(cluster=cluster)
    ranked = [best]
    for place in range(1, num_plans):
        waiting.add(_less(ranked[-1], candidates, cluster, job))
        for variant in waiting.unsolved():
            progress("planning", place, num_plans)
            other = _solve(variant, cluster, job, clock)
            if other is not None:
                found.setdefault(_character(other, cluster), other)
        left = [each for each in found.values() if each not in ranked]
        if not left:
            break
        ranked.append(min(left, key=_worth))
    return tuple(Alternative(plan=each, trade=_trade(best, each)) for each in ranked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """A problem less something."""

    candidates: tuple[Candidate, ...]
    cluster: Cluster
    job: Job

    def key(self) -> tuple[object, ...]:
        """What tells variants apart."""
        names = tuple(device.name for device in self.cluster.devices)
        return (tuple(each.num_microbatches for each in self.candidates), names, self.job)


class _Waiting:
    """Variants, each solved once."""

    def __init__(self, *, cluster: Cluster) -> None:
        self._cluster = cluster
        self._variants: dict[tuple[object, ...], _Variant] = {}
        self._solved: set[tuple[object, ...]] = set()

    def add(self, variants: Iterator[_Variant]) -> None:
        """Take variants that are new."""
        for variant in variants:
            self._variants.setdefault(variant.key(), variant)

    def unsolved(self) -> list[_Variant]:
        """Those not handed out before."""
        new = [variant for key, variant in self._variants.items() if key not in self._solved]
        self._solved |= set(self._variants)
        return new


def _less(of: Plan, candidates: tuple[Candidate, ...], cluster: Cluster, job: Job) -> Iterator[_Variant]:
    """The problem without one of the things that a plan uses."""
    used = {name for stage in of.stages for name in stage.devices}
    named = {device for _, device in (*job.pins, *job.forbidden)}
    for group in group_devices(cluster, frozenset(named)):
        inside = [device for device in group.devices if device.name in used]
        if inside and inside[-1].name not in named:
            drop = {inside[-1].name, *(device.name for device in group.devices if device.name not in used)}
            rest = tuple(device for device in cluster.devices if device.name not in drop)
            if rest and (job.stages or 1) <= len(rest):
                yield _Variant(candidates=candidates, cluster=replace(cluster, devices=rest), job=job)
    if job.stages is None and len(of.stages) > 1:
        yield _Variant(candidates=candidates, cluster=cluster, job=replace(job, stages=len(of.stages) - 1))
    others = tuple(each for each in candidates if each.num_microbatches != of.schedule.num_microbatches)
    if job.microbatches is None and others:
        yield _Variant(candidates=others, cluster=cluster, job=job)
    if job.mode == "train" and job.schedule is None:
        other = replace(job, schedule="gpipe" if of.schedule.name == "1f1b" else "1f1b")
        yield _Variant(candidates=candidates, cluster=cluster, job=other)


def _solve(variant: _Variant, cluster: Cluster, job: Job, clock: Callable[[], float]) -> Plan | None:
    """The best plan of a variant, as a plan for the whole cluster; None if nothing fits."""
    try:
        made = plan(variant.candidates, variant.cluster, variant.job, clock=clock)
    except InfeasibleError:
        return None
    kept = {device.name for device in variant.cluster.devices}
    left_out = tuple(
        Excluded(device=device.name, reason="left out in this alternative")
        for device in cluster.devices if device.name not in kept
    )
    order = {device.name: number for number, device in enumerate(cluster.devices)}
    excluded = sorted((*made.excluded, *left_out), key=lambda each: order[each.device])
    return replace(made, cluster=cluster, excluded=tuple(excluded))


def _worth(of: Plan) -> tuple[float, float]:
    """What plans are ranked by: what the job wants least, then time."""
    seconds = of.proof.objective_seconds if of.job.objective == "latency" else of.prediction.step_seconds
    return (seconds if of.proof.least is None else of.proof.least.value, seconds)


def _character(of: Plan, cluster: Cluster) -> tuple[object, ...]:
    """What makes a plan really different: devices by group, stages, micro-batches, schedule; not where the cuts lie."""
    group_of = {device.name: number for number, group in enumerate(group_devices(cluster)) for device in group.devices}
    used = Counter(group_of[name] for stage in of.stages for name in stage.devices)
    return (tuple(sorted(used.items())), len(of.stages), of.schedule.num_microbatches, of.schedule.name)


def _trade(best: Plan, other: Plan) -> str:
    """What a plan gives up and saves against the best one."""
    if other is best:
        return f"the best plan: {format_seconds(best.prediction.step_seconds)} a step"
    factor = other.prediction.step_seconds / best.prediction.step_seconds
    slower = "as fast" if abs(factor - 1) < 5e-4 else f"{factor:.3f}x the time"
    parts = [f"{slower} ({format_seconds(other.prediction.step_seconds)} a step)"]
    counts = [sum(len(stage.devices) for stage in each.stages) for each in (best, other)]
    if counts[0] != counts[1]:
        fewer = counts[0] - counts[1]
        parts.append(f"{abs(fewer)} device{'s' if abs(fewer) > 1 else ''} {'fewer' if fewer > 0 else 'more'}")
    costs = [each.prediction.cost_per_million for each in (best, other)]
    if costs[0] and costs[1] is not None:
        parts.append(f"{costs[1] / costs[0]:.2f}x the price per sample")
    peaks = [max(stage.peak_bytes for stage in each.stages) for each in (best, other)]
    if peaks[0] != peaks[1]:
        parts.append(f"at most {format_bytes(peaks[1])} on a device instead of {format_bytes(peaks[0])}")
    if best.schedule.num_microbatches != other.schedule.num_microbatches:
        parts.append(f"{other.schedule.num_microbatches} micro-batches instead of {best.schedule.num_microbatches}")
    if best.schedule.name != other.schedule.name:
        parts.append(f"{other.schedule.name} instead of {best.schedule.name}")
    return ", ".join(parts)
