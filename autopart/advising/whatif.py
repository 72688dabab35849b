"""A planned problem, and the same with one thing changed: speed, links, memory, model size, batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from autopart import planning
from autopart.schema.advice import Variant
from autopart.schema.device import Cluster, Link
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from autopart.schema.profile import KindProfile

__all__ = ["SAME", "Case", "Problem", "bracket", "first_factor", "is_other"]

SAME = 1e-3
"""relative: plans whose steps differ by less are as good"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Candidates among which a job chooses: of generated text there is a case for every number of groups."""

    candidates: tuple[Candidate, ...]
    job: Job


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a plan was made of: its candidates, cluster and job, with the plan itself."""

    plan: Plan
    candidates: tuple[Candidate, ...]
    cluster: Cluster
    job: Job
    others: tuple[Case, ...] = ()
    """what else it was chosen among, where that is of another job"""

    @property
    def generates(self) -> bool:
        """Whether text is generated."""
        return self.job.cache_tokens > 0

    @cached_property
    def chosen(self) -> Candidate:
        """The candidate of the plan's micro-batch count."""
        return next(each for each in self.candidates if each.num_microbatches == self.plan.schedule.num_microbatches)

    @cached_property
    def kept(self) -> Variant | None:
        """This plan, in this problem; None if it does not fit."""
        return planning.kept_variant(self.plan, self.chosen, self.cluster, self.job)

    @cached_property
    def solved(self) -> Variant | None:
        """The best plan that is found anew; None if nothing fits."""
        return self.found()

    def found(self, *, using: tuple[str, int] | None = None) -> Variant | None:
        """The best plan that is found anew; ``using`` (a device, a number): with so many like it."""
        best = (self._of_case(each, using) for each in self.cases)
        return min(filter(None, best), key=lambda each: each.step_seconds, default=None)

    def _of_case(self, case: Case, using: tuple[str, int] | None) -> Variant | None:
        """The best of one case; where text is generated with no more stages than groups, as the planner has it.

        With several stages per device it is this plan with its cuts moved, or one device alone.
        """
        if planning.is_looped(case.job):
            return planning.moved_variant(self.plan, case.candidates, self.cluster, case.job)
        best = planning.best_variant(case.candidates, self.cluster, case.job, using=using, tolerance=SAME / 4)
        if best is None or not self.others or not 1 < best.num_microbatches < len(best.devices):
            return best
        job = replace(case.job, stages=best.num_microbatches)
        return planning.best_variant(case.candidates, self.cluster, job, using=using, tolerance=SAME / 4)

    @property
    def cases(self) -> tuple[Case, ...]:
        """All that was chosen among, the plan's own case first."""
        return (Case(candidates=self.candidates, job=self.job), *self.others)

    def gain(self, other: Variant | None) -> float:
        """How many times this plan's rate another has (of objective latency: how many times sooner it is done)."""
        kept = self.kept
        assert kept is not None, "advice is about a plan that fits"
        if other is None:
            return 0.0
        if self.job.objective == "latency":
            return kept.step_seconds / other.step_seconds
        return other.samples_per_second / kept.samples_per_second

    @property
    def alone(self) -> Variant | None:
        """The best plan for one device; None if none holds the model."""
        schedule = None if planning.is_looped(self.job) else self.job.schedule
        words = {"stages": 1, "tensor_parallel": 1, "data_parallel": 1, "microbatches": None, "schedule": schedule}
        return self.with_job(**words).solved

    @property
    def best(self) -> Variant | None:
        """The best plan of this problem, this one if no other is better; None if nothing fits."""
        known = [each for each in (self.kept, self.solved) if each is not None]
        return min(known, key=lambda each: each.step_seconds, default=None)

    @cached_property
    def lean(self) -> Problem:
        """With fewer micro-batch counts: the plan's, and one; of a plan for one device, and of text, all."""
        if len(self.plan.stages) == 1 or self.generates:
            return self
        few = (each for each in self.candidates if each is self.chosen or each.num_microbatches == 1)
        return replace(self, candidates=tuple(few))

    def with_job(self, **words: object) -> Problem:
        """The problem of a job with other words."""
        others = tuple(replace(each, job=replace(each.job, **words)) for each in self.others)  # type: ignore[arg-type]
        return replace(self, job=replace(self.job, **words), others=others)  # type: ignore[arg-type]

    def with_batch(self, num_microbatches: int) -> Problem:
        """So many micro-batches of the plan's size, whatever the batch then is."""
        job = replace(self.job, batch=num_microbatches * self.chosen.graph.batch_size, microbatches=None)
        candidate = replace(self.chosen, num_microbatches=num_microbatches)
        schedule = replace(self.plan.schedule, num_microbatches=num_microbatches)
        return replace(self, plan=replace(self.plan, schedule=schedule), candidates=(candidate,), job=job)

    def without(self, device: str) -> Problem:
        """A device less."""
        devices = tuple(each for each in self.cluster.devices if each.name != device)
        return replace(self, cluster=replace(self.cluster, devices=devices))

    def with_speed(self, factor: float, kind: str | None = None) -> Problem:
        """A kind (None: all) so many times as fast."""
        def row(each: KindProfile) -> KindProfile:
            return _slower(each, 1 / factor) if kind in (None, each.kind) else each

        def faster(candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
            return tuple(
                replace(each, profile=replace(each.profile, kinds=tuple(map(row, each.profile.kinds))))
                for each in candidates
            )

        return replace(self, candidates=faster(self.candidates), others=tuple(
            replace(each, candidates=faster(each.candidates)) for each in self.others
        ))  # fmt: skip

    def with_links(self, factor: float, link: Link | None = None) -> Problem:
        """A link rule (None: all) with so many times the bandwidth."""
        links = tuple(
            replace(each, bandwidth_bytes_per_second=each.bandwidth_bytes_per_second * factor)
            if link in (None, each) else each
            for each in self.cluster.links
        )
        return replace(self, cluster=replace(self.cluster, links=links))

    def with_memory(self, factor: float, kind: str) -> Problem:
        """A kind with so many times the memory that a plan may use."""
        devices = tuple(
            replace(each, memory_bytes=round(each.memory_bytes * factor)) if each.kind == kind else each
            for each in self.cluster.devices
        )
        return replace(self, cluster=replace(self.cluster, devices=devices))

    def with_size(self, factor: float) -> Problem:
        """Layers with so many times the parameters: work grows as they do, what crosses a cut as their square root.

        Memory stays as it is, and so does the number of layers.
        """
        return self.with_speed(1 / factor).with_links(factor**-0.5)


def _slower(row: KindProfile, factor: float) -> KindProfile:
    return replace(
        row, forward_seconds=tuple(each * factor for each in row.forward_seconds),
        backward_seconds=tuple(each * factor for each in row.backward_seconds),
        optimizer_seconds=tuple(each * factor for each in row.optimizer_seconds),
    )  # fmt: skip


def is_other(problem: Problem) -> bool:
    """Whether another plan than the problem's own is better in it, or its own does not fit."""
    best, kept = problem.best, problem.kept
    if best is None or kept is None:
        return best is not kept or kept is None
    moved = (best.devices, best.boundaries, best.ways) != (kept.devices, kept.boundaries, kept.ways)
    return moved and best.step_seconds < kept.step_seconds * (1 - SAME)


def bracket(
    holds: Callable[[float], bool], last: float, *, near: float = 1.0, steps: int = 3
) -> tuple[float, float] | None:
    """Two factors between ``near`` and ``last``: at the first something does not hold yet, at the second it does.

    None if it does not hold at ``last``.  By halving the logarithm, which takes it that what holds at one factor holds
    at all beyond it.
    """
    if not holds(last):
        return None
    far = last
    for _ in range(steps):
        middle = (near * far) ** 0.5
        near, far = (near, middle) if holds(middle) else (middle, far)
    return near, far


def first_factor(holds: Callable[[float], bool], last: float, *, near: float = 1.0, steps: int = 3) -> float | None:
    """The factor, from ``near`` towards ``last``, from which on something holds; None if not even at ``last``."""
    found = bracket(holds, last, near=near, steps=steps)
    return None if found is None else found[1]
