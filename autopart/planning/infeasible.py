"""Why nothing fits, and the smallest single change that would: each suggestion is solved before it is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from autopart.errors import InfeasibleError
from autopart.planning.costing.memory import NUM_OPTIMIZER_STATES
from autopart.planning.looped import fits_looped, is_looped
from autopart.planning.searching.optimum import is_feasible
from autopart.planning.searching.options import Option
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster, Device
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from autopart.units import format_bytes

__all__ = ["infeasibility", "looped_infeasibility"]

T = TypeVar("T")

UNLIMITED_BYTES = 2**60
MIB = 2**20
MOST_MORE = 16
"""devices of a kind that are tried in addition"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """What nothing fits."""

    candidates: tuple[Candidate, ...]
    allowed: tuple[Candidate, ...]
    """of the candidates, those that may become the plan"""
    cluster: Cluster
    job: Job
    effort: Effort

    def fits(self) -> bool:
        """Whether some plan of an allowed candidate does.

        Raises:
            _LateError: that is not known, and there is no time left.
        """
        search = fits_looped if is_looped(self.job) else is_feasible
        found = any(search(candidate, self.cluster, self.job, self.effort) for candidate in self.allowed)
        if not found and self.effort.is_over():
            raise _LateError
        return found

    def of(self, job: Job) -> _Problem:
        """The same for another job."""
        return replace(self, job=job)

    def with_memory(self, name: str, memory_bytes: int) -> _Problem:
        """One device has other memory."""
        return self._with(lambda each: memory_bytes if each.name == name else each.memory_bytes)

    def scaled(self, factor: float) -> _Problem:
        """All devices have so many times their memory."""
        return self._with(lambda each: round(each.memory_bytes * factor))

    def unlimited(self) -> _Problem:
        """All devices have as much memory as they need."""
        return self._with(lambda _: UNLIMITED_BYTES)

    def _with(self, memory_bytes: Callable[[Device], int]) -> _Problem:
        devices = tuple(replace(each, memory_bytes=memory_bytes(each)) for each in self.cluster.devices)
        return replace(self, cluster=replace(self.cluster, devices=devices))


class _LateError(Exception):
    """Whether something fits is not known: there is no time left."""


def infeasibility(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort
) -> InfeasibleError:
    """The error to raise where no allowed candidate fits: what is short by how much, and what would fit.

    Where time runs out before that is known, the error says so.
    """
    problem = _Problem(candidates=candidates, allowed=allowed, cluster=cluster, job=job, effort=effort)
    try:
        return InfeasibleError(_explained(problem))
    except _LateError:
        return InfeasibleError(
            "no plan fits in memory, and what is short by how much was not found in time; give a longer --time-limit, "
            "larger devices or a smaller batch"
        )


def looped_infeasibility(
    candidates: tuple[Candidate, ...], allowed: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort,
    closest: Option | None,
) -> InfeasibleError:
    """The same for schedules with several stages per device, whose placements are searched, not proven.

    ``closest``: what was met that is short of least memory; None if there is no placement at all.
    """
    problem = _Problem(candidates=candidates, allowed=allowed, cluster=cluster, job=job, effort=effort)
    why = f"; the closest: {closest.misfit}" if closest else f" for --stages {job.stages}: not enough devices or cuts"
    short = None if closest is None else _most_short(closest, cluster)
    return InfeasibleError(f"no placement tried for --schedule {job.schedule} fits{why}; {_suggestion(problem, short)}")


def _most_short(option: Option, cluster: Cluster) -> tuple[Device, int]:
    """The device of an option that is short of most memory, and what it needs."""
    needs = Counter[str]()
    for cost, name in zip(option.costs, option.layout.devices, strict=True):
        needs[name] += cost.memory.total
    short = max(map(cluster.device, needs), key=lambda device: needs[device.name] - device.memory_bytes)
    return short, needs[short.name]


def _explained(problem: _Problem) -> str:
    cluster = problem.cluster
    if not problem.unlimited().fits():
        return _impossible(problem)
    found = _shortest(problem)
    if found is None:
        return f"{_all_short(problem)}; {_suggestion(problem, None)}"
    device, needed = found
    where = device.name if len(cluster.devices) == 1 else f"even at best {device.name}"
    return (
        f"no plan fits in memory: {where} is short by {format_bytes(needed - device.memory_bytes)} "
        f"(needs {format_bytes(needed)}, has {format_bytes(device.memory_bytes)}); {_suggestion(problem, found)}"
    )


def _impossible(problem: _Problem) -> str:
    """No memory would do: wishes that contradict each other, too many stages, or devices without links."""
    job, num_devices = problem.job, len(problem.cluster.devices)
    cuts = len(set(problem.allowed[0].graph.legal_cuts))
    helps = (text for text, changed in _lifted(job) if problem.of(changed).fits())
    wishes = len(job.pins) + len(job.forbidden) + len(job.together)
    return (
        f"no plan exists whatever the memory: {job.stages or 'any number of'} stages, {cuts} legal cuts, "
        f"{num_devices} devices{f', {wishes} wishes' if wishes else ''}; "
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


def _shortest(problem: _Problem) -> tuple[Device, int] | None:
    """The device that would need least more memory for some plan to fit, and how much it would need in all.

    None where no single device can make up for the others.
    """
    best: tuple[int, Device, int] | None = None
    for device in problem.cluster.devices:
        limit = UNLIMITED_BYTES if best is None else device.memory_bytes + best[0] - 1
        if problem.with_memory(device.name, limit).fits():
            needed = _least(problem, device, limit)
            best = (needed - device.memory_bytes, device, needed)
    return None if best is None else best[1:]


def _least(problem: _Problem, device: Device, high: int) -> int:
    """The least memory of one device, to 0.1 % and rounded up, with which some plan fits."""
    low = device.memory_bytes
    if high == UNLIMITED_BYTES:
        high = 2 * low
        while not problem.with_memory(device.name, high).fits():
            low, high = high, 2 * high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if problem.with_memory(device.name, middle).fits() else (middle, high)
    return high


def _all_short(problem: _Problem) -> str:
    """Every device is too small: by which factor."""
    low, high = 1.0, 2.0
    while not problem.scaled(high).fits():
        low, high = high, 2 * high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if problem.scaled(middle).fits() else (middle, high)
    total = sum(device.memory_bytes for device in problem.cluster.devices)
    return (
        f"no plan fits in memory: the devices have {format_bytes(total)} together, {format_bytes(round(total * high))} "
        f"({high:.2f}x on each) would do"
    )


Change = tuple[str, _Problem]


def _changes(problem: _Problem, short: tuple[Device, int] | None) -> Iterator[Change]:
    """Single changes, the least intrusive first; ``short``: a device and the memory that would do."""
    job = problem.job
    yield from _other_ways(problem)
    yield from ((text, problem.of(changed)) for text, changed in _lifted(job))
    if short is not None and short[1] <= short[0].uncapped_bytes:
        name, needed = short[0].name, -(-short[1] // MIB) * MIB
        yield f"it fits with --max-memory {name}={needed // MIB}MiB", problem.with_memory(name, needed)
    if job.master_weights:
        yield "it fits without --master-weights", problem.of(replace(job, master_weights=False))
    if NUM_OPTIMIZER_STATES[job.optimizer]:
        yield "it fits with --optimizer sgd", problem.of(replace(job, optimizer="sgd"))
    for num_more in range(1, MOST_MORE + 1):
        for kind in dict.fromkeys(device.kind for device in problem.cluster.devices):
            like = next(d for d in problem.cluster.devices if d.kind == kind)
            more = tuple(replace(like, name=f"{like.name}+{number}") for number in range(1, num_more + 1))
            cluster = replace(problem.cluster, devices=(*problem.cluster.devices, *more))
            text = f"it fits with {'one' if num_more == 1 else num_more} more {kind}"
            yield text, replace(problem, cluster=cluster)


def _other_ways(problem: _Problem) -> Iterator[Change]:
    """The same model on the same devices, run in another way."""
    job, allowed = problem.job, problem.allowed
    for candidate in sorted(problem.candidates, key=lambda c: c.num_microbatches):
        if candidate not in allowed:
            num = candidate.num_microbatches
            changed = replace(problem.of(replace(job, microbatches=num)), allowed=(candidate,))
            yield f"it fits with --microbatches {num}", changed
    if is_looped(job) or (job.mode == "train" and job.schedule == "gpipe"):
        yield "it fits with --schedule 1f1b", problem.of(replace(job, schedule="1f1b"))
    if job.stage_dtype != "keep":
        as_built = tuple(map(_as_built, allowed))
        yield "it fits with --stage-dtype keep", replace(problem.of(replace(job, stage_dtype="keep")), allowed=as_built)
    if job.mode == "train" and job.recompute == "never" and not is_looped(job):
        yield "it fits with --recompute auto", problem.of(replace(job, recompute="auto"))


def _as_built(candidate: Candidate) -> Candidate:
    """With all stages in the model's own types: what they hold is known of these, and times do not matter here."""
    kinds = tuple(replace(row, dtype="") for row in candidate.profile.kinds)
    return replace(candidate, profile=replace(candidate.profile, kinds=kinds))


def _suggestion(problem: _Problem, short: tuple[Device, int] | None) -> str:
    for text, changed in _changes(problem, short):
        try:
            if changed.fits():
                return text
        except _LateError:
            return "what single change would make it fit was not found in time: use larger devices or a smaller batch"
    return (
        f"no single change of the job nor {MOST_MORE} more devices of a kind make it fit: "
        "use larger devices or a smaller batch"
    )
