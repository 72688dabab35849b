"""The best plan of a changed problem, quickly and without proof: many of them say what would change a plan.

It is the path of ``chain.best_path``, which is the optimum where the vectors of used devices are few (``is_exact``) and
a good plan elsewhere, cut anew for real links as in the planner.  Of plans with several stages per device it is the
plan with its cuts moved, or one device alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from autopart.planning.baselines import best_single_device
from autopart.planning.costing.costs import Layout
from autopart.planning.costing.parallel import ALONE, Way
from autopart.planning.looped import is_looped, moved_cuts
from autopart.planning.searching.chain import best_path
from autopart.planning.searching.optimum import allowed_candidates, instances_of, options_of
from autopart.planning.searching.options import Option, evaluate, rank
from autopart.schema.advice import Variant
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate

__all__ = ["best_variant", "can_vary", "kept_variant", "moved_variant"]


def can_vary(plan: Plan) -> bool:
    """Whether variants are of the same making as a plan: the fastest; with looped schedules one of several devices."""
    job = plan.job
    one_device = len({stage.devices for stage in plan.stages}) == 1
    return not (is_looped(job) and one_device) and (
        job.objective in ("throughput", "latency") and job.method == "optimal"
        and job.max_step_seconds is None and job.max_usd_per_hour is None
    )  # fmt: skip


def best_variant(
    candidates: Iterable[Candidate], cluster: Cluster, job: Job, *, using: tuple[str, int] | None = None,
    tolerance: float = 1e-6,
) -> Variant | None:  # fmt: skip
    """The fastest plan found, None if none fits; ``using`` (a device, a number): if it uses so many like it.

    ``tolerance``: relative, by which a faster one may be missed.
    """
    options: list[Option] = []
    for candidate in allowed_candidates(tuple(candidates), job):
        for instance in instances_of(candidate, cluster, job, every_schedule=True):
            at_least = None
            if using is not None:
                at_least = tuple(
                    using[1] if any(device.name == using[0] for device in group.devices) else 0
                    for group in instance.groups
                )
            path = best_path(instance, at_least=at_least, tolerance=tolerance)
            options += options_of(candidate, cluster, job, instance, path)
    found = min(options, key=lambda option: rank(option, job), default=None)
    return None if found is None else _variant(found, job)


def moved_variant(plan: Plan, candidates: Iterable[Candidate], cluster: Cluster, job: Job) -> Variant | None:
    """Of a looped schedule the plan with its cuts moved, on those of its devices that are there, or one device alone.

    The faster of these by simulation; None if neither fits.
    """
    allowed, names = allowed_candidates(tuple(candidates), job), tuple(stage.devices[0] for stage in plan.stages)
    here = {device.name for device in cluster.devices}
    left = tuple(name for name in names if name in here)
    found = []
    if len(set(left)) > 1:
        ends = _boundaries(plan) if left == names else ()
        found += [moved_cuts(candidate, cluster, job, left, ends) for candidate in allowed]
    if job.stages in (None, 1):
        found.append(best_single_device(allowed, cluster, job))
    fitting = [option for option in found if option is not None and not option.misfit]
    best = min(fitting, key=lambda option: rank(option, job), default=None)
    return None if best is None else _variant(best, job)


def kept_variant(plan: Plan, candidate: Candidate, cluster: Cluster, job: Job) -> Variant | None:
    """The plan as it is, with the candidate's times and the cluster's links and caps; None if it does not fit there."""
    ways = tuple(
        Way(tensor=stage.tensor_parallel, data=stage.data_parallel, recompute=stage.recompute) for stage in plan.stages
    )
    plain = all(way == ALONE for way in ways)
    layout = Layout(
        num_microbatches=candidate.num_microbatches, schedule=plan.schedule.name, boundaries=_boundaries(plan),
        devices=tuple(stage.devices[0] for stage in plan.stages), ways=() if plain else ways,
        others=() if plain else tuple(stage.devices[1:] for stage in plan.stages),
    )
    option = evaluate(candidate, cluster, job, layout)
    return None if option.misfit else _variant(option, job)


def _boundaries(plan: Plan) -> tuple[int, ...]:
    return (0, *accumulate(len(stage.layers) for stage in plan.stages))


def _variant(option: Option, job: Job) -> Variant:
    layout, stage_seconds = option.layout, tuple(cost.stage_seconds for cost in option.costs)
    seconds, rate = rank(option, job)[0], option.candidate.batch / option.step_seconds
    count = layout.num_microbatches // job.rounds
    if job.cache_tokens and job.objective == "throughput":
        # a round: no shorter than all groups on the busiest stage, and than one group through all stages
        seconds = max(count * max(stage_seconds), sum(stage_seconds))
        rate = job.cache_sequences / seconds
    return Variant(
        step_seconds=seconds, samples_per_second=rate, num_microbatches=count,
        devices=tuple(layout.devices_of(index) for index in range(layout.num_stages)), boundaries=layout.boundaries,
        stage_seconds=stage_seconds, ways=tuple((way.tensor, way.data, way.recompute) for way in layout.ways),
    )  # fmt: skip
