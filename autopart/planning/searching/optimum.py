"""The best plan over all candidates, and the bound that none can beat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from autopart.planning.costing.nodes import has_many_groups, merged_nodes, whole_nodes
from autopart.planning.costing.tables import MAX_BOUNDARIES
from autopart.planning.costing.wishes import apart_devices
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.bottleneck import least_threshold
from autopart.planning.searching.bounds import Certificate, prove
from autopart.planning.searching.chain import Path, best_path, is_exact
from autopart.planning.searching.frontier import can_list
from autopart.planning.searching.greedy import recut
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.options import Option, evaluate, layout_of, schedules
from autopart.planning.searching.phases import narrow
from autopart.planning.searching.refine import refined
from autopart.planning.searching.settling import keeping_rows
from autopart.planning.searching.windows import prove_by_windows
from autopart.planning.solving.effort import Effort
from autopart.progress import Progress
from autopart.schema.device import Cluster
from autopart.schema.job import Job, ScheduleName
from autopart.schema.plan import Least, Proof
from autopart.schema.problem import Candidate

__all__ = [
    "Optimum", "allowed_candidates", "find_optimum", "instances_of", "is_feasible", "is_large", "options_of",
    "proof_of",
]  # fmt: skip

SMALLEST_GAP = 1e-5
"""relative: below it the solvers' own tolerances decide"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """What the search over all candidates found."""

    options: tuple[Option, ...]
    """every path met, evaluated; () if nothing fits"""
    bound_seconds: float
    bound: str
    closed: bool
    solver: str
    num_programs: int
    remark: str
    """why another solver than the first was asked, else empty"""
    merged: bool
    nodes_merged: bool = False
    """the bound is of a cluster with the best link of every two kinds in place of theirs"""
    least_bound: float | None = None
    """of what is made least, where that is not time"""


def allowed_candidates(candidates: tuple[Candidate, ...], job: Job) -> tuple[Candidate, ...]:
    """The candidates that may become the plan: those of the wanted count; for latency whole batches if there are."""
    allowed = tuple(c for c in candidates if job.microbatches in (None, c.num_microbatches))
    whole = tuple(c for c in allowed if c.num_microbatches == 1)
    return whole if job.objective == "latency" and whole else allowed


def options_of(candidate: Candidate, cluster: Cluster, job: Job, instance: Instance, path: Path) -> list[Option]:
    """A path under every allowed schedule in which it fits; [] for no path."""
    options = [
        evaluate(candidate, cluster, job, layout)
        for schedule in (schedules(job) if path else ())
        if (layout := layout_of(instance, path, schedule, cluster)) is not None
    ]
    return [option for option in options if not option.misfit]


def _on_nodes(
    candidate: Candidate, cluster: Cluster, job: Job, instance: Instance, found: list[Option], effort: Effort
) -> list[Option]:
    """More plans where the instance is of merged nodes: cut anew for the real links, or of nodes without remainders."""
    if instance.cluster == cluster:
        return []
    if not found and instance.widest > 1:
        apart = apart_devices(job, cluster)
        few = whole_nodes(cluster, apart, instance.widest)
        whole = build_instance(candidate, merged_nodes(few, apart), job, instance.schedule, real=few)
        whole, path = _start(whole, effort)
        return options_of(candidate, cluster, job, whole, path)
    plain = {option.layout.devices for option in found if not option.layout.ways}
    sequences = [tuple(cluster.device(name) for name in names) for names in sorted(plain)]
    layouts = [layout for each in schedules(job) for layout in recut(candidate, cluster, job, each, sequences)]
    options = [evaluate(candidate, cluster, job, layout) for layout in layouts if not (job.pins or job.forbidden)]
    return [option for option in options if not option.misfit and job.stages in (None, option.layout.num_stages)]


def instances_of(
    candidate: Candidate, cluster: Cluster, job: Job, *, every_schedule: bool = False
) -> list[Instance]:
    """The path problems that together hold every plan of a candidate.

    Under 1F1B a path needs the least memory, under GPipe it takes the least time, so where all stages that fit under
    1F1B fit under GPipe too, in the same ways, that is the only problem; for latency 1F1B's is, unless there are fewer
    micro-batches than devices: 1F1B cannot have so many stages, GPipe can.  With ``every_schedule`` each has its own
    for throughput: where links count, its best path is another one.
    """
    allowed = schedules(job)
    if job.objective == "latency" and candidate.num_microbatches >= len(cluster.devices):
        allowed = allowed[:1]
    apart = apart_devices(job, cluster)
    planned = merged_nodes(cluster, apart) if has_many_groups(cluster, apart) else cluster
    made = [build_instance(candidate, planned, job, schedule, real=cluster) for schedule in allowed]
    if every_schedule and job.objective != "latency":
        return made
    return made[-1:] if len({_stages(each) for each in made}) == 1 else made


def _stages(instance: Instance) -> bytes:
    """Which stages fit, and in which ways, whatever comes before or behind."""
    arcs = instance.arcs
    return np.unique(np.stack([arcs.first, arcs.last, arcs.group, arcs.way]), axis=1).tobytes()


WIDE_TOLERANCE = 5e-3
"""by which a path of a large problem has to be better for the dynamic program to go on: windows follow it"""
SHARE_OF_START = 0.4
"""of the time, after which that is enough of a start if there is a path at all"""


def is_large(instance: Instance) -> bool:
    """Whether stage-time windows prove it: the dynamic program is not exact, or there are many cuts, merged or not."""
    few_cuts = len(instance.boundaries) <= MAX_BOUNDARIES and not instance.merged
    small = is_exact(instance.counts, instance.widest) and few_cuts
    return instance.repeats > 0 and instance.floor_seconds > 0 and not small


def _start(instance: Instance, effort: Effort, *, met: bool = False) -> tuple[Instance, Path]:
    """The instance with the floor found on the way, and a good path to start from, or ().

    ``met``: there is a plan under another schedule, which will do where a path takes long to find.
    """
    if not is_large(instance):
        return instance, best_path(instance, out_of_time=effort.is_over)
    least = least_threshold(instance, math.inf, WIDE_TOLERANCE, out_of_time=effort.is_over)
    tightened = replace(instance, floor_seconds=least.floor_seconds)
    path = keeping_rows(instance, least.path)
    if not path and not met and not can_list(instance):
        until = effort.clock() + SHARE_OF_START * effort.left_seconds()
        path = (
            best_path(tightened, tolerance=WIDE_TOLERANCE, out_of_time=lambda: effort.clock() >= until)
            or best_path(tightened, tolerance=WIDE_TOLERANCE, out_of_time=effort.is_over)
        )  # fmt: skip
    return tightened, path


def is_feasible(candidate: Candidate, cluster: Cluster, job: Job, effort: Effort) -> bool:
    """Whether any plan of the candidate fits."""
    instances = [replace(instance, repeats=0) for instance in instances_of(candidate, cluster, job)]
    return any(
        bool(best_path(each, out_of_time=effort.is_over))
        or (not is_exact(each.counts, each.widest) and bool(prove(each, math.inf, effort).path))
        for each in instances
    )


def find_optimum(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, progress: Progress
) -> Optimum:
    """The fastest plans of the candidates and a bound over all of them: dynamic program first, integer programs then.

    With ``job.max_step_seconds`` nothing slower is looked into: where no option is that fast, the bound says so.
    """
    problems = [(candidate, each) for candidate in candidates for each in instances_of(candidate, cluster, job)]
    search = _Search(problems, cluster, job, effort)
    num_steps, best = 2 * len(problems), []
    for done, (candidate, instance) in enumerate(problems):
        progress("planning", done, num_steps)
        instance, path = _start(instance, effort, met=any(option.candidate is candidate for option in search.options))
        problems[done] = (candidate, instance)
        best.append(search.meet(candidate, instance, path))
    for done, index in enumerate(sorted(range(len(problems)), key=best.__getitem__)):
        progress("planning", len(problems) + done, num_steps)
        candidate, instance = problems[index]
        if instance.merged and instance.repeats and math.isfinite(search.best):
            instance = refined(candidate, cluster, job, instance, search.best)
        search.close(candidate, instance, at_least_one_program=not done)
    progress("planning", num_steps, num_steps)
    return replace(
        _collect(search.options, search.instances, search.certificates),
        nodes_merged=any(instance.cluster != cluster for instance in search.instances),
    )


@dataclass(slots=True)
class _Search:
    """What is known so far."""

    problems: list[tuple[Candidate, Instance]]
    cluster: Cluster
    job: Job
    effort: Effort
    options: list[Option] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Objective of the best plan known, or what the job allows."""
        cutoff = (self.job.max_step_seconds or math.inf) * (1 + self.effort.gap) * (1 + 1e-9)
        return min([cutoff, *(option.objective_seconds for option in self.options)])

    def meet(self, candidate: Candidate, instance: Instance, path: Path) -> float:
        """Take a path under every schedule; the objective of its best plan."""
        new = options_of(candidate, self.cluster, self.job, instance, path)
        new += _on_nodes(candidate, self.cluster, self.job, instance, new, self.effort)
        self.options += new
        return min((option.objective_seconds for option in new), default=math.inf)

    def close(self, candidate: Candidate, instance: Instance, *, at_least_one_program: bool) -> None:
        """Prove a bound on the plans of a problem, as good as is wanted if there is time."""
        certificate = self.certify(candidate, instance, at_least_one_program=at_least_one_program)
        if self.is_enough(certificate) or not (instance.repeats and self.job.mode == "train"):
            self.add(instance, certificate)
            return
        if instance.in_phases and "1f1b" in schedules(self.job) and not self.has(candidate, "1f1b"):
            # the problem holds the plans of 1F1B too, which are slower than it knows
            self.close_exactly(candidate, replace(instance, schedule="1f1b"))
        self.close_exactly(candidate, instance)

    def close_exactly(self, candidate: Candidate, instance: Instance) -> None:
        """The same over the arcs of better plans only, whose periods know the links behind, and GPipe's phases."""
        instance = refined(candidate, self.cluster, self.job, instance, self.best)
        certificate = self.certify(candidate, instance)
        if instance.in_phases and not self.is_enough(certificate):
            certificate = narrow(
                instance, certificate, self.best, self.effort, lambda part: (self.certify(candidate, part), self.best)
            )
        self.add(instance, certificate)

    def is_enough(self, certificate: Certificate) -> bool:
        """Whether a bound is as good as is wanted, or there is no time for a better one."""
        return certificate.bound_seconds >= self.best / (1 + self.effort.gap) * (1 - 1e-9) or self.effort.is_over()

    def has(self, candidate: Candidate, schedule: ScheduleName) -> bool:
        """Whether a candidate has a problem of its own for a schedule."""
        return any(each.schedule == schedule and other is candidate for other, each in self.problems)

    def certify(self, candidate: Candidate, instance: Instance, *, at_least_one_program: bool = False) -> Certificate:
        """A bound on the path problem alone; the path that it finds is met."""
        if is_large(instance) or (instance.prices and instance.repeats):
            # C9 is a knapsack, which makes integer programs slow, and not the windows' dynamic program
            certificate = prove_by_windows(instance, self.best, self.effort)
        else:
            certificate = prove(instance, self.best, self.effort, at_least_one_program=at_least_one_program)
        if certificate.path:
            self.meet(candidate, instance, certificate.path)
        return certificate

    def add(self, instance: Instance, certificate: Certificate) -> None:
        """Take a bound."""
        self.instances.append(instance)
        self.certificates.append(certificate)


def _collect(options: list[Option], instances: list[Instance], certificates: list[Certificate]) -> Optimum:
    closed = all(certificate.closed for certificate in certificates)
    merged = any(instance.merged for instance in instances)
    over = "cuts between items of merged layers" if merged else "all legal cuts"
    method = "threshold path programs" if closed else "device prices and fractional balance (time limit)"
    if any(is_large(instance) or (instance.prices and instance.repeats) for instance in instances):
        method = "windows of the largest stage time" if closed else "windows of the largest stage time, some left open"
    return Optimum(
        options=tuple(options),
        bound_seconds=min(certificate.bound_seconds for certificate in certificates),
        bound=f"{method} over {over}",
        closed=closed,
        solver="+".join(sorted({c.solver for c in certificates if c.solver != "none"})) or "none",
        num_programs=sum(certificate.num_programs for certificate in certificates),
        remark=next((certificate.remark for certificate in certificates if certificate.remark), ""),
        merged=merged,
    )


def proof_of(option: Option, optimum: Optimum, job: Job, solve_seconds: float, least: Least | None = None) -> Proof:
    """How good an option is by the bound; ``least``: of what is made least, where that is not time."""
    objective = option.objective_seconds
    bound = min(optimum.bound_seconds, objective)
    value, below = (objective, bound) if least is None else (least.value, least.bound)
    gap = value / below - 1 if below > 0 else 0.0 if value <= below else math.inf
    proven = optimum.closed and gap <= max(job.gap, 2 * SMALLEST_GAP)
    outcome: str = "unproven-baseline" if job.method != "optimal" else "proven" if proven else "feasible"
    return Proof(
        objective_seconds=objective, bound_seconds=bound, bound=optimum.bound, gap=gap,
        outcome=outcome,  # type: ignore[arg-type]  # one of the three words above
        solver=optimum.solver, solve_seconds=solve_seconds, least=least,
    )
