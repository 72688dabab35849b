"""The verb plan_top: the best plan and really different ones beside it, each with what it trades."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from autopart import planning
from autopart.errors import MismatchError, UsageError
from autopart.modelsource import Source, with_batch
from autopart.progress import Progress, silent
from autopart.schema.alternatives import Alternative
from autopart.schema.plan import Check, Plan
from autopart.sizes import candidates
from autopart.splitting import side_by_side
from autopart.tracecache import traced
from autopart.verbs import DeviceSpec, check_source, plan_source

__all__ = ["plan_top_source"]


def plan_top_source(
    source: Source, num_plans: int, *, devices: DeviceSpec = None, cluster_file: Path | None = None,
    verify: bool = True, progress: Progress = silent, **words: Any,
) -> tuple[Alternative, ...]:  # fmt: skip
    """At most ``num_plans`` plans for a model source, the best first; the words are those of ``plan_source``.

    The best one is that of ``plan_source``.  The others are checked like it, but where one differs from the unsplit
    model its ``checks`` say so: nothing is planned anew for it.

    Raises:
        UsageError: a word is wrong, or no plan is asked for.
        TracingError, InfeasibleError, MismatchError: as for ``plan_source``.
    """
    if num_plans < 1:
        raise UsageError(f"at least one plan has to be asked for, not {num_plans}; give --top 1 or more")
    best = plan_source(
        source, devices=devices, cluster_file=cluster_file, verify=verify, progress=progress, **words
    )
    job, opaque = best.job, best.model.opaque
    choice, _, _ = candidates(
        with_batch(source, job.batch), best.cluster, job, opaque, fresh=False, refresh=False, progress=progress
    )
    found = planning.plan_top(choice, best.cluster, job, num_plans, best=best, progress=progress)
    others = (dataclasses.replace(each, plan=_like(best, each.plan)) for each in found[1:])
    if verify:
        others = (dataclasses.replace(each, plan=_checked(each.plan, source)) for each in others)
    return (found[0], *others)


def _like(best: Plan, plan: Plan) -> Plan:
    """The plan with how the model was traced."""
    model = dataclasses.replace(plan.model, tracer=best.model.tracer, opaque=best.model.opaque)
    return dataclasses.replace(plan, model=model)


def _checked(plan: Plan, source: Source) -> Plan:
    """The plan with the checks of its split, all its stages standing where the model's weights are."""
    piece = with_batch(source, plan.job.batch // plan.schedule.num_microbatches)
    device = traced(piece, training=plan.job.mode == "train", opaque=plan.model.opaque).device
    stages = side_by_side(plan, device)
    try:
        checks = check_source(plan, piece, stages)
    except MismatchError as error:
        checks = (Check(name="values", outcome="failed", detail=str(error)),)
    return dataclasses.replace(plan, checks=checks)
