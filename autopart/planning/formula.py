"""The formula of a plan's step, added up from the plan alone, without the tables of the search.

It is the sum of stage times, M - 1 times what every further micro-batch takes, and what optimizers add.
"""

from __future__ import annotations

from autopart.schema.plan import Plan, Stage

__all__ = ["behind_seconds", "last_update_seconds", "period_seconds", "phase_seconds", "round_seconds", "stage_seconds"]


def stage_seconds(plan: Plan, stage: Stage) -> float:
    """Computing and the incoming boundary in both directions, of one micro-batch."""
    received = (t.seconds + t.backward_seconds for t in plan.transfers if t.to_stage == stage.index)
    return stage.forward_seconds + stage.backward_seconds + sum(received)


def behind_seconds(plan: Plan, stage: Stage) -> float:
    """What the boundary behind a stage adds to how often it comes round, less what its own takes off.

    Under 1F1B the two ends of a boundary wait for each other, both ways.  Under GPipe a gradient's way is a matter of
    the stage that waits for it, the one before.
    """
    if plan.schedule.name == "1f1b":
        return sum(t.seconds + t.backward_seconds for t in plan.transfers if t.from_stage == stage.index)
    if plan.schedule.name == "gpipe":
        return _returns(plan, stage.index + 1) - _returns(plan, stage.index)
    return 0.0


def period_seconds(plan: Plan, stage: Stage) -> float:
    """How often a stage comes round."""
    return stage_seconds(plan, stage) + behind_seconds(plan, stage)


def phase_seconds(plan: Plan, stage: Stage) -> tuple[float, float]:
    """What a micro-batch occupies a stage for in GPipe's forward phase, and in its backward phase."""
    values = sum(t.seconds for t in plan.transfers if t.to_stage == stage.index)
    return stage.forward_seconds + values, stage.backward_seconds + _returns(plan, stage.index + 1)


def round_seconds(plan: Plan) -> float:
    """What every further micro-batch takes: the largest period; under GPipe the largest of either phase."""
    if plan.schedule.name == "gpipe":
        forward, backward = zip(*(phase_seconds(plan, stage) for stage in plan.stages), strict=True)
        return float(max(forward) + max(backward))
    return max(period_seconds(plan, stage) for stage in plan.stages)


def last_update_seconds(plan: Plan) -> float:
    """How long after the first stage's last backward the last optimizer ends; others run while the gradient goes on.

    Not while a stage's own gradient is on the way: torch's schedules end with waiting for that.
    """
    hidden, latest = 0.0, 0.0
    for stage in plan.stages:
        latest = max(latest, stage.optimizer_seconds - hidden)
        hidden += _returns(plan, stage.index) + stage.backward_seconds
    return latest


def _returns(plan: Plan, index: int) -> float:
    return sum(t.backward_seconds for t in plan.transfers if t.to_stage == index)
