"""The model at every micro-batch size that is worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autopart import profiling
from autopart.candidates import microbatch_counts, preferred_count
from autopart.modelsource import Source, with_batch
from autopart.progress import Progress
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import PlanWarning
from autopart.schema.problem import Candidate
from autopart.schema.profile import Profile
from autopart.tracecache import Traced, traced

__all__ = ["candidates", "profiled"]

LARGE_GRAPH = 3000
"""operators above which one micro-batch size is traced instead of several"""


def candidates(
    source: Source, cluster: Cluster, job: Job, opaque: Sequence[str], *, fresh: bool, refresh: bool,
    progress: Progress,
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
    """
    first, *others = _counts(job, len(cluster.devices))
    found: list[Candidate] = []
    traces: dict[int, Traced] = {}
    warnings: tuple[PlanWarning, ...] = ()
    for done, count in enumerate((first, *others)):
        progress("tracing", done, 1 + len(others))
        piece = with_batch(source, job.batch // count)
        traces[count] = trace = traced(piece, training=job.mode == "train", opaque=opaque, fresh=fresh)
        profile = profiled(
            trace, cluster, optimizer=job.optimizer, at_once=count > 1, refresh=refresh, progress=progress
        )
        found.append(Candidate(num_microbatches=count, graph=trace.graph, profile=profile))
        if trace.num_operators > LARGE_GRAPH and others:
            warnings = _one_size_only(job, count)
            break
    progress("tracing", 1 + len(others), 1 + len(others))
    return tuple(sorted(found, key=lambda each: each.num_microbatches)), traces, warnings


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
