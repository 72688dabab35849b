"""Why nothing fits, and the smallest single change that would: each suggestion is solved before it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

from autopart.errors import InfeasibleError
from autopart.planning.searching.optimum import is_feasible
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster, Device
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from autopart.units import format_bytes

__all__ = ["infeasibility"]

T = TypeVar("T")

UNLIMITED_BYTES = 2**60
MOST_MORE = 16
"""devices of a kind that are tried in addition"""


def infeasibility(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> InfeasibleError:
    """The error to raise where no allowed candidate fits: what is short by how much, and what would fit.

    Where time runs out before that is known, the error says so.
    """
    try:
        return _explained(candidates, allowed, cluster, job, effort)
    except _LateError:
        return InfeasibleError(
            "no plan fits in memory, and what is short by how much was not found in time; give a longer --time-limit, "
            "larger devices or a smaller batch"
        )


class _LateError(Exception):
    """Whether something fits is not known: there is no time left."""


def _explained(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> InfeasibleError:
    unlimited = replace(
        cluster, devices=tuple(replace(device, memory_bytes=UNLIMITED_BYTES) for device in cluster.devices)
    )
    if not _fits(allowed, unlimited, job, effort):
        return _impossible(allowed, cluster, job, effort)
    device, needed_bytes = _shortest(allowed, cluster, job, effort)
    missing = format_bytes(needed_bytes - device.memory_bytes)
    where = device.name if len(cluster.devices) == 1 else f"even at best {device.name}"
    message = (
        f"no plan fits in memory: {where} is short by {missing} (needs {format_bytes(needed_bytes)}, "
        f"has {format_bytes(device.memory_bytes)})"
    )
    return InfeasibleError(f"{message}; {_suggestion(candidates, allowed, cluster, job, effort, device, needed_bytes)}")


def _impossible(
    allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> InfeasibleError:
    """No memory would do: wishes that contradict each other, too many stages, or devices without links."""
    cuts = len(set(allowed[0].graph.legal_cuts))
    helps = (text for text, changed in _lifted(job) if _fits(allowed, cluster, changed, effort))
    wishes = len(job.pins) + len(job.forbidden) + len(job.together)
    return InfeasibleError(
        f"no plan exists whatever the memory: {job.stages or 'any number of'} stages, {cuts} legal cuts, "
        f"{len(cluster.devices)} devices{f', {wishes} wishes' if wishes else ''}; "
        + next(helps, "give fewer --stages, or links between the devices")
    )


def _lifted(job: Job) -> Iterator[tuple[str, Job]]:
    """The job without one of its demands on where layers go, then without all wishes; with words."""
    if job.stages is not None:
        yield "it fits without --stages", replace(job, stages=None)
    for pin in job.pins:
        yield f"it fits without --pin {'='.join(pin)}", replace(job, pins=_but(job.pins, pin))
    for ban in job.forbidden:
        yield f"it fits without --forbid {'='.join(ban)}", replace(job, forbidden=_but(job.forbidden, ban))
    for names in job.together:
        yield f"it fits without --together {','.join(names)}", replace(job, together=_but(job.together, names))
    if len(job.pins) + len(job.forbidden) + len(job.together) > 1:
        yield "it fits without all --pin, --forbid and --together", replace(job, pins=(), forbidden=(), together=())


def _but(wishes: tuple[T, ...], one: T) -> tuple[T, ...]:
    return tuple(each for each in wishes if each != one)


def _fits(candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort) -> bool:
    found = any(is_feasible(candidate, cluster, job, effort) for candidate in candidates)
    if not found and effort.is_over():
        raise _LateError
    return found


def _with_memory(cluster: Cluster, name: str, memory_bytes: int) -> Cluster:
    devices = tuple(replace(d, memory_bytes=memory_bytes) if d.name == name else d for d in cluster.devices)
    return replace(cluster, devices=devices)


def _shortest(
    allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> tuple[Device, int]:
    """The device that would need least more memory for some plan to fit, and how much it would need in all.

    Where no single device can make up for the others, all of them grow in proportion and the first is named.
    """
    best: tuple[int, Device, int] | None = None
    for device in cluster.devices:
        limit = UNLIMITED_BYTES if best is None else device.memory_bytes + best[0] - 1
        if _fits(allowed, _with_memory(cluster, device.name, limit), job, effort):
            needed = _least(allowed, cluster, job, effort, device, limit)
            best = (needed - device.memory_bytes, device, needed)
    if best is None:
        raise _all_short(allowed, cluster, job, effort)
    return best[1], best[2]


def _least(
    allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, device: Device, high: int
) -> int:
    """The least memory of one device, to 0.1 % and rounded up, with which some plan fits."""
    low = device.memory_bytes
    if high == UNLIMITED_BYTES:
        high = 2 * low
        while not _fits(allowed, _with_memory(cluster, device.name, high), job, effort):
            low, high = high, 2 * high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        if _fits(allowed, _with_memory(cluster, device.name, middle), job, effort):
            high = middle
        else:
            low = middle
    return high


def _all_short(allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort) -> InfeasibleError:
    """Every device is too small: by which factor."""
    low, high = 1.0, 2.0
    while not _fits(allowed, _scaled(cluster, high), job, effort):
        low, high = high, 2 * high
    for _ in range(12):
        middle = (low + high) / 2
        if _fits(allowed, _scaled(cluster, middle), job, effort):
            high = middle
        else:
            low = middle
    total = sum(device.memory_bytes for device in cluster.devices)
    return InfeasibleError(
        f"no plan fits in memory: the devices have {format_bytes(total)} together, {format_bytes(round(total * high))} "
        f"({high:.2f}x on each) would do; use larger devices or a smaller batch"
    )


def _scaled(cluster: Cluster, factor: float) -> Cluster:
    devices = tuple(replace(d, memory_bytes=round(d.memory_bytes * factor)) for d in cluster.devices)
    return replace(cluster, devices=devices)


Change = tuple[str, tuple[Candidate, ...], Cluster, Job]


def _changes(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job,
    device: Device, needed_bytes: int,
) -> Iterator[Change]:
    """Single changes, the least intrusive first."""
    for candidate in sorted(candidates, key=lambda c: c.num_microbatches):
        if candidate not in allowed:
            num = candidate.num_microbatches
            yield f"it fits with --microbatches {num}", (candidate,), cluster, replace(job, microbatches=num)
    if job.mode == "train" and job.schedule == "gpipe":
        yield "it fits with --schedule 1f1b", allowed, cluster, replace(job, schedule="1f1b")
    if job.mode == "train" and job.recompute == "never":
        yield "it fits with --recompute auto", allowed, cluster, replace(job, recompute="auto")
    yield from ((text, allowed, cluster, changed) for text, changed in _lifted(job))
    if needed_bytes <= device.uncapped_bytes:
        raised = _with_memory(cluster, device.name, needed_bytes)
        yield f"it fits with --max-memory {device.name}={_round_up(needed_bytes)}", allowed, raised, job
    if job.optimizer in ("adamw", "adam"):
        yield "it fits with --optimizer sgd", allowed, cluster, replace(job, optimizer="sgd")
    for num_more in range(1, MOST_MORE + 1):
        for kind in dict.fromkeys(device.kind for device in cluster.devices):
            like = next(d for d in cluster.devices if d.kind == kind)
            more = tuple(replace(like, name=f"{like.name}+{number}") for number in range(1, num_more + 1))
            text = f"it fits with {'one' if num_more == 1 else num_more} more {kind}"
            yield text, allowed, replace(cluster, devices=(*cluster.devices, *more)), job


def _round_up(num_bytes: int) -> str:
    return f"{-(-num_bytes // 2**20)}MiB"


def _suggestion(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort,
    device: Device, needed_bytes: int,
) -> str:
    for text, some, changed_cluster, changed_job in _changes(candidates, allowed, cluster, job, device, needed_bytes):
        try:
            if _fits(some, changed_cluster, changed_job, effort):
                return text
        except _LateError:
            return "what single change would make it fit was not found in time: use larger devices or a smaller batch"
    return (
        f"no single change of the job nor {MOST_MORE} more devices of a kind make it fit: "
        "use larger devices or a smaller batch"
    )
