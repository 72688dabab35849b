"""The door's main act: from candidates, a cluster and a job to a checked plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from autopart.errors import InfeasibleError, UsageError
from autopart.planning.advice import reasons, verdict_of
from autopart.planning.aiming.existence import first_fitting
from autopart.planning.aiming.objectives import SEARCHES, beyond_limits, least_of
from autopart.planning.aiming.quantities import choose, keeps_limits, with_rents
from autopart.planning.assemble import assemble
from autopart.planning.baselines import BASELINES, best_single_device, evaluate_baseline, summarise
from autopart.planning.check import check
from autopart.planning.costing.wishes import check_wishes
from autopart.planning.infeasible import infeasibility, looped_infeasibility
from autopart.planning.looped import MOST_ROUNDS, check_looped, find_looped, is_looped
from autopart.planning.searching.optimum import SMALLEST_GAP, Optimum, allowed_candidates, proof_of
from autopart.planning.searching.options import Option
from autopart.planning.solving.effort import Effort
from autopart.planning.watching import warnings_of
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Method
from autopart.schema.plan import Baseline, Plan
from autopart.schema.problem import Candidate
from autopart.units import format_seconds

__all__ = ["plan"]


def plan(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, *,
    clock: Callable[[], float] = time.perf_counter, progress: Progress = silent,
) -> Plan:
    """The plan with least of what the job wants (time, unless said), over all candidates, and a bound on all plans.

    With ``job.microbatches`` set only candidates of that count become the plan; others serve as single-device
    baseline and as suggestions.  The result has passed ``check``.

    Raises:
        UsageError: the candidates do not fit the job or the cluster, or a rent is wanted that is not known.
        InfeasibleError: nothing fits or keeps the limits; the message has the shortage and a change that helps.
    """
    _validate(candidates, cluster, job)
    cluster, started = with_rents(cluster, job), clock()
    effort = _effort(job, len(cluster.devices), clock)
    allowed = allowed_candidates(candidates, job)
    search = find_looped if is_looped(job) else SEARCHES[job.objective]
    rivals = _rivals(candidates, allowed, cluster, _with_stages_of_their_own(job, cluster), effort)
    optimum = search(allowed, cluster, job, effort, progress)
    solve_seconds = clock() - started
    pool = _pool(optimum, rivals, allowed, cluster, job)
    if not pool and not optimum.closed and not is_looped(job):  # ended before it met any
        optimum = replace(optimum, options=first_fitting(allowed, cluster, job, _extended(effort, job)))
        pool = _pool(optimum, rivals, allowed, cluster, job)
    if not pool:
        raise _none(candidates, allowed, cluster, job, effort, optimum)
    chosen = (
        choose(pool, cluster, job, optimum.least_bound, optimum.bound_seconds) if job.method == "optimal"
        else _prescribed(rivals, cluster, job)
    )
    baselines = _summaries(rivals, chosen, job)
    proof = proof_of(chosen, optimum, job, solve_seconds, least_of(chosen, optimum, cluster, job))
    excluded = reasons(chosen, allowed, cluster, job, proof, effort)
    result = assemble(
        chosen, cluster, job, proof=proof, baselines=baselines, excluded=excluded,
        verdict=verdict_of(chosen, cluster, job, baselines, excluded, rivals.single.layout.devices[0]),
        warnings=warnings_of(chosen, cluster, job, optimum, proof, baselines),
    )
    check(result, chosen.candidate)
    return result


FEW_DEVICES = 8

SHARE_AFTERWARDS = 0.25
"""of the time limit, that what comes after the search may take at least"""


def _effort(job: Job, num_devices: int, clock: Callable[[], float]) -> Effort:
    """Aims at half the gap allowed, for few devices alone at a hundredth: there the difference costs little time."""
    alone = job.tensor_parallel == job.data_parallel == 1
    gap = max(job.gap / (100 if num_devices <= FEW_DEVICES and alone else 2), SMALLEST_GAP)
    return Effort(solver=job.solver, gap=gap, deadline=clock() + job.time_limit_seconds, clock=clock)


def _extended(effort: Effort, job: Job) -> Effort:
    """With some time even where the search took all of it."""
    return replace(effort, deadline=max(effort.deadline, effort.clock() + SHARE_AFTERWARDS * job.time_limit_seconds))


def _validate(candidates: tuple[Candidate, ...], cluster: Cluster, job: Job) -> None:
    check_looped(job)
    if not candidates:
        raise UsageError("there is nothing to plan: no micro-batch count was traced; give --microbatches")
    if len({candidate.num_microbatches for candidate in candidates}) != len(candidates):
        raise UsageError("two candidates have the same number of micro-batches; give each count once")
    for candidate in candidates:
        if candidate.graph.fingerprint != candidates[0].graph.fingerprint:
            raise UsageError("the candidates are of different models; trace one model for all micro-batch counts")
        if candidate.batch != job.batch:
            num = candidate.num_microbatches
            raise UsageError(
                f"{num} micro-batches of {candidate.graph.batch_size} samples are {candidate.batch}, "
                f"not the batch of {job.batch}; trace the model for micro-batches of {job.batch / num:g}"
            )
        _validate_profile(candidate, cluster)
    check_wishes(candidates[0].graph, cluster, job)
    if not allowed_candidates(candidates, job):
        counts = sorted(candidate.num_microbatches for candidate in candidates)
        raise UsageError(f"no candidate has {job.microbatches} micro-batches; there are {counts}")
    places = len(cluster.devices) * (MOST_ROUNDS if is_looped(job) else 1)
    most = min(places, len(set(candidates[0].graph.legal_cuts)) + 1)
    if job.stages is not None and job.stages > most:
        raise UsageError(
            f"{job.stages} stages cannot be made of {len(cluster.devices)} devices and "
            f"{len(set(candidates[0].graph.legal_cuts))} legal cuts; give --stages {most} or fewer"
        )


def _validate_profile(candidate: Candidate, cluster: Cluster) -> None:
    known = {kind.kind: kind for kind in candidate.profile.kinds}
    for device in cluster.devices:
        if device.kind not in known:
            raise UsageError(f"the profile has no times for {device.kind} ({device.name}); profile that kind as well")
        if not sum(known[device.kind].forward_seconds) > 0:
            raise UsageError(f"all times on {device.kind} are zero; profile it again")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rivals:
    """The baselines, evaluated."""

    splits: dict[Method, Option | None]
    single: Option


def _with_stages_of_their_own(job: Job, cluster: Cluster) -> Job:
    """Simpler ways have one stage per device: where more are asked for, as many as they like."""
    return replace(job, stages=None) if (job.stages or 0) > len(cluster.devices) else job


def _rivals(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> _Rivals:
    methods: list[Method] = [*BASELINES, "greedy"]
    if job.method == "chain-dp":
        methods.append("chain-dp")
    return _Rivals(
        splits={
            method: evaluate_baseline(method, allowed, cluster, job, out_of_time=_extended(effort, job).is_over)
            for method in methods
        },
        single=best_single_device(candidates, cluster, job),
    )


def _pool(
    optimum: Optimum, rivals: _Rivals, allowed: tuple[Candidate, ...], cluster: Cluster, job: Job
) -> list[Option]:
    """What the plan is chosen from: what the search met, and simpler ways, which do not know wishes."""
    wishes = job.pins or job.forbidden or job.together
    alone = [rivals.single] if any(rivals.single.candidate is each for each in allowed) else []
    simpler = () if wishes and job.method == "optimal" else (*rivals.splits.values(), *alone)
    pool = [option for option in (*optimum.options, *simpler) if option is not None and not option.misfit]
    wanted = (option for option in pool if job.stages in (None, option.layout.num_stages))
    return [option for option in wanted if keeps_limits(option, cluster, job)]


def _none(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort,
    optimum: Optimum,
) -> InfeasibleError:
    """The error to raise where there is no plan."""
    patient = _extended(effort, job)
    if is_looped(job):
        return looped_infeasibility(candidates, allowed, cluster, job, patient, next(iter(optimum.options), None))
    limits = beyond_limits(allowed, cluster, job, patient)
    if limits is not None:
        return limits
    if not optimum.closed:
        return InfeasibleError(
            f"no plan was found within {format_seconds(job.time_limit_seconds)}, nor was it proven that none fits; "
            "give a longer --time-limit, fewer kinds of devices, or larger ones"
        )
    free = replace(job, max_step_seconds=None, max_usd_per_hour=None)
    return infeasibility(candidates, allowed, cluster, free, patient)


def _summaries(rivals: _Rivals, chosen: Option, job: Job) -> tuple[Baseline, ...]:
    splits = (summarise(method, option, chosen, job) for method, option in rivals.splits.items())
    return (summarise("single-device", rivals.single, chosen, job), *splits)


def _prescribed(rivals: _Rivals, cluster: Cluster, job: Job) -> Option:
    """The option of the baseline that the job asks for."""
    option = rivals.splits[job.method]
    if option is None:
        raise InfeasibleError(f"method '{job.method}' makes no plan on these devices; use --method optimal")
    if option.misfit:
        raise InfeasibleError(f"method '{job.method}' does not fit: {option.misfit}; use --method optimal, which does")
    if not keeps_limits(option, cluster, job):
        raise InfeasibleError(f"method '{job.method}' does not keep the limits of time or price; use --method optimal")
    return option
