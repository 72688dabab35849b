"""When the last optimizer of a plan ends: added up from the plan alone, without the tables of the search."""

from __future__ import annotations

from autopart.schema.plan import Plan

__all__ = ["last_update_seconds"]


def last_update_seconds(plan: Plan) -> float:
    """How long after the first stage's last backward the last optimizer ends; others run while the gradient goes on."""
    backs = [sum(t.backward_seconds for t in plan.transfers if t.to_stage == stage.index) for stage in plan.stages]
    hidden = [
        sum(backs[: stage.index]) + sum(each.backward_seconds for each in plan.stages[: stage.index])
        for stage in plan.stages
    ]
    return max(stage.optimizer_seconds - seconds for stage, seconds in zip(plan.stages, hidden, strict=True))
