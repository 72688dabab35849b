"""The model at every micro-batch size that is worth a look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopart import planning, profiling
from autopart.batchlaw import equal_work
from autopart.candidates import microbatch_counts, preferred_count
from autopart.errors import InfeasibleError
from autopart.keying import models_stay
from autopart.modelsource import Source, with_batch
from autopart.progress import Progress
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Plan, PlanWarning
from autopart.schema.problem import Candidate
from autopart.schema.profile import Profile
from autopart.sharedweights import most_devices, with_most_devices
from autopart.tracecache import Traced, derived, kept, traced

__all__ = ["candidates", "planned", "profiled"]

LARGE_GRAPH = 3000
"""operators above which one micro-batch size is traced instead of several"""


def candidates(
    source: Source, cluster: Cluster, job: Job, opaque: Sequence[str], *, fresh: bool, refresh: bool,
    progress: Progress, budget: profiling.Budget | None = None, may_derive: bool = False,
) -> tuple[tuple[Candidate, ...], dict[int, Traced], tuple[PlanWarning, ...]]:  # fmt: skip
    """The model at each size with its profile, and its trace by micro-batch count; a warning if there should be more.

    Args:
        source: of a whole batch.
        cluster: to profile on.
        job: which says how many micro-batches, or leaves it open.
        opaque: modules not to be looked into.
        fresh: trace what is in the cache too.
        refresh: measure what is in the cache too.
        progress: told about every size.
        budget: time for measuring, for all sizes together.
        may_derive: where nothing is measured, trace two sizes and derive the others from them, if that can be: their
            traces have ``is_derived``, and ``planned`` traces the one that is chosen.
    """
    counts = _counts(job, len(cluster.devices))
    none_is_here = all(device.backend == "absent" for device in cluster.devices)
    may_derive = may_derive and none_is_here and not fresh and not opaque
    training = job.mode == "train"
    found: list[Candidate] = []
    traces: dict[int, Traced] = {}
    warnings: tuple[PlanWarning, ...] = ()
    with models_stay():
        for done, count in enumerate(counts):
            progress("tracing", done, len(counts))
            piece = with_batch(source, job.batch // count)
            trace = _derived(piece, traces.values(), training) if may_derive else None
            traces[count] = trace = trace or traced(piece, training=training, opaque=opaque, fresh=fresh)
            found.append(_candidate(count, trace, cluster, job, refresh=refresh, progress=progress, budget=budget))
            if trace.num_operators > LARGE_GRAPH and len(counts) > 1:
                warnings = _one_size_only(job, count)
                break
    progress("tracing", len(counts), len(counts))
    return _in_order(_with_shares(found, traces, cluster, job)), traces, warnings


def _with_shares(
    found: list[Candidate], traces: Mapping[int, Traced], cluster: Cluster, job: Job
) -> Iterable[Candidate]:
    """The candidates with what several devices divide of every weight, where they may share a stage's layers."""
    widest = min(job.tensor_parallel, len(cluster.devices))
    if widest < 2:
        return found
    known = most_devices(next(trace for trace in traces.values() if not trace.is_derived), widest)
    return [replace(each, graph=with_most_devices(each.graph, known)) for each in found]


def planned(
    choice: tuple[Candidate, ...], traces: Mapping[int, Traced], cluster: Cluster, job: Job, *, refresh: bool,
    progress: Progress, budget: profiling.Budget | None = None,
) -> tuple[Plan, Traced]:  # fmt: skip
    """The plan among the candidates, and the trace that it is of, which is a real one.

    If a derived size is chosen it is traced, and if that shows another graph, planned again with it.  Before it is said
    that nothing fits every size is traced.

    Raises:
        InfeasibleError: nothing fits.
    """
    traces = dict(traces)

    def settle(count: int) -> bool:
        """Whether a size is as was derived, now that it is traced."""
        nonlocal choice
        derivation, traces[count] = traces[count], traced(traces[count].source, training=job.mode == "train")
        new = _candidate(count, traces[count], cluster, job, refresh=refresh, progress=progress, budget=budget)
        shares = {each.name: each.most_devices for each in choice[0].graph.weights if each.most_devices is not None}
        new = replace(new, graph=with_most_devices(new.graph, shares))
        choice = _in_order((new, *(each for each in choice if each.num_microbatches != count)))
        return equal_work(traces[count].graph, derivation.graph)

    while True:
        try:
            found = planning.plan(choice, cluster, job, progress=progress)
        except InfeasibleError as error:
            unsure = [count for count, trace in traces.items() if trace.is_derived]
            if all(settle(count) for count in unsure):
                if _may_be_quicker(choice, job) and _fits_in_other_types(
                    traces, cluster, job, refresh=refresh, progress=progress, budget=budget
                ):
                    raise InfeasibleError(f"{error}; or --stage-dtype auto, with which it fits") from error
                raise
            continue
        count = found.schedule.num_microbatches
        if not traces[count].is_derived or settle(count):
            return found, traces[count]


def _may_be_quicker(choice: tuple[Candidate, ...], job: Job) -> bool:
    """Whether a limit of time might be kept if kinds without units for the model's half type computed in another."""
    alone = max(job.tensor_parallel, job.data_parallel) == 1
    lacking = any(row.computes_as for candidate in choice for row in candidate.profile.kinds)
    return job.max_step_seconds is not None and job.stage_dtype == "keep" and alone and lacking


def _fits_in_other_types(traces: Mapping[int, Traced], cluster: Cluster, job: Job, **options: Any) -> bool:
    changed = replace(job, stage_dtype="auto")
    made = [_candidate(count, trace, cluster, changed, **options) for count, trace in traces.items()]
    try:
        planning.plan(_in_order(made), cluster, changed)
    except InfeasibleError:
        return False
    return True


def _candidate(
    count: int, trace: Traced, cluster: Cluster, job: Job, *, refresh: bool, progress: Progress,
    budget: profiling.Budget | None,
) -> Candidate:  # fmt: skip
    profile = profiled(
        trace, cluster, optimizer=job.optimizer, at_once=count > 1, refresh=refresh, progress=progress, budget=budget,
        stage_dtype=job.stage_dtype,
    )
    return Candidate(num_microbatches=count, graph=trace.graph, profile=profile)


def _in_order(found: Iterable[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(found, key=lambda each: each.num_microbatches))


def _derived(source: Source, traces: Iterable[Traced], training: bool) -> Traced | None:
    """The trace if it is in the cache, or by the first two."""
    one, other, *_ = (*traces, None, None)
    if one is None or other is None:
        return None
    return kept(source, training=training) or derived(source, one, other)


def profiled(trace: Traced, cluster: Cluster, **options: Any) -> Profile:
    """What every layer of a trace costs on every kind of the cluster; see ``profiling.profile`` for the options."""

    def live() -> Any:
        source, program = trace.live()
        return program, program.flatten_inputs(source.args, source.kwargs)

    return profiling.profile_graph(trace.graph, live, cluster, **options)


def _counts(job: Job, num_devices: int) -> tuple[int, ...]:
    """Micro-batch counts, the one to look at if there is time for one only first."""
    first = job.microbatches or (1 if job.objective == "latency" else preferred_count(job.batch, num_devices))
    few = job.microbatches or job.objective == "latency"
    wanted = {first, 1} if few else {first, *microbatch_counts(job.batch, num_devices)}
    return (first, *sorted(wanted - {first}))


def _one_size_only(job: Job, count: int) -> tuple[PlanWarning, ...]:
    if job.microbatches:
        return ()
    return (
        PlanWarning(
            code="one-microbatch-count",
            message=f"the model is large, so only {count} micro-batches were tried",
            suggestion="give --microbatches N to try another count",
        ),
    )
