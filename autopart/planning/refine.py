"""Long chains at every legal cut, proven by the exact dynamic program.

The objective of a plan is at least M times its largest stage time, so stages above the incumbent's M-th part are left
out before they are made.  Then targets rise from what prices prove: for each, prices drop every stage whose best plan
costs as much, and the dynamic program over what is left either finds a plan below the target or proves that none is.
"""

from __future__ import annotations

from dataclasses import replace

from autopart.planning.arcs import Instance, build_instance
from autopart.planning.bounds import Certificate, Effort
from autopart.planning.chain import Path, best_path, is_exact, path_objective
from autopart.planning.prices import price_arcs
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = ["exact_certificate", "refined"]

FINE_BOUNDARIES = 1200
MOST_STEPS = 60_000_000
"""arcs times count vectors, above which the exact dynamic program is not tried: the proof stays open there"""
NUM_ROUNDS = 24
STEPS = (1.002, *(1.004,) * 500)
"""how much further each target is above what has been proven, until a plan is found below it"""


def refined(candidate: Candidate, cluster: Cluster, job: Job, instance: Instance, incumbent: float) -> Instance:
    """The instance at all legal cuts, without the stages that are too long for a plan better than the incumbent."""
    fine = build_instance(
        candidate, cluster, job, instance.schedule, limit=FINE_BOUNDARIES,
        below_seconds=incumbent / (instance.repeats + 1),
    )
    return replace(fine, prices=instance.prices, budget=instance.budget)


def _worth(instance: Instance, target: float) -> tuple[Instance, float]:
    """The instance with the stages that a plan below the target may have, and a bound on all its plans."""
    arcs, bound = instance.arcs, 0.0
    for _ in range(3):
        cutoff = target - instance.repeats * instance.floor_seconds
        priced = price_arcs(instance, arcs, cutoff, None, num_rounds=NUM_ROUNDS)
        bound = priced.bound + instance.repeats * instance.floor_seconds
        if bound >= target:
            return replace(instance, arcs=arcs.keep(arcs.first < 0)), bound
        arcs = arcs.keep((priced.through < cutoff) & (arcs.seconds < (target - priced.bound) / instance.repeats))
    return replace(instance, arcs=arcs), bound


def exact_certificate(instance: Instance, incumbent: float, gap: float, effort: Effort) -> Certificate | None:
    """The proof, up to a gap, by the exact dynamic program; None where it would be too long or is not exact."""
    vectors = 1
    for count in instance.counts:
        vectors *= count + 1
    if not is_exact(instance.counts, instance.widest):
        return None
    path: Path = ()
    steps, best = iter(STEPS), incumbent
    _, proven = _worth(instance, incumbent)
    while not path and proven * (1 + gap) < incumbent and effort.left_seconds() > 0:
        target = min(proven * next(steps), incumbent)
        some, _ = _worth(instance, target)
        if vectors * len(some.arcs) > MOST_STEPS:
            break
        found = best_path(some, below=target, tolerance=gap)
        if found:
            path = _translated(instance, some, found)
            best = path_objective(instance, instance.arcs, path)
        else:
            proven = target
    closed = bool(path) or proven * (1 + gap) >= incumbent
    return Certificate(
        bound_seconds=min(best * (1 - gap) if path else proven, best), path=path, closed=closed,
        num_programs=0, solver="exact dynamic program", remark="",
    )


def _translated(instance: Instance, some: Instance, path: Path) -> Path:
    """The path's arcs as those of the whole instance."""
    whole, part = instance.arcs, some.arcs
    names = ("first", "before", "last", "group", "way")
    rows = zip(*(getattr(whole, name).tolist() for name in names), strict=True)
    index = {key: number for number, key in enumerate(rows)}
    return tuple(index[tuple(int(getattr(part, name)[arc]) for name in names)] for arc in path)
