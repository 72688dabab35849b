"""Where the time and memory of a plan go."""

from __future__ import annotations

from autopart.planning.formula import (
    behind_seconds,
    last_update_seconds,
    period_seconds,
    phase_seconds,
    round_seconds,
    stage_seconds,
)
from autopart.planning.searching.options import LOOPED
from autopart.schema.explanation import CutTerms, Explanation, StageTerms
from autopart.schema.plan import Plan, Stage

__all__ = ["explain"]


def explain(plan: Plan) -> Explanation:
    """Each term of time and memory per stage, the bottleneck stage, and what each cut costs; no formatting."""
    one, periods = sum(stage_seconds(plan, s) for s in plan.stages), [period_seconds(plan, s) for s in plan.stages]
    bottleneck = max(range(len(periods)), key=periods.__getitem__)
    repeats = 0 if plan.job.objective == "latency" else plan.schedule.num_microbatches - 1
    looped = plan.schedule.name in LOOPED
    repeated, once = repeats * round_seconds(plan), last_update_seconds(plan)
    return Explanation(
        num_microbatches=plan.schedule.num_microbatches,
        stages=tuple(_stage_terms(plan, stage, periods[bottleneck]) for stage in plan.stages),
        cuts=tuple(_cut_terms(plan, index) for index in range(1, len(plan.stages))),
        bottleneck=bottleneck,
        one_microbatch_seconds=one,
        repeated_seconds=repeated,
        once_seconds=once,
        objective_seconds=plan.proof.objective_seconds if looped else one + repeated + once,
        phases=_phases(plan) if plan.schedule.name == "gpipe" and plan.job.mode == "train" else None,
        step_seconds=plan.prediction.step_seconds,
        bubble_fraction=plan.prediction.bubble_fraction,
    )


def _receive_seconds(plan: Plan, stage: Stage) -> float:
    return sum(t.seconds + t.backward_seconds for t in plan.transfers if t.to_stage == stage.index)


def _phases(plan: Plan) -> tuple[int, int]:
    """The stages that take longest in GPipe's two phases."""
    each = [phase_seconds(plan, stage) for stage in plan.stages]
    longest = [max(range(len(each)), key=lambda index: each[index][phase]) for phase in (0, 1)]
    return longest[0], longest[1]


def _stage_terms(plan: Plan, stage: Stage, largest_seconds: float) -> StageTerms:
    seconds, behind = stage_seconds(plan, stage), behind_seconds(plan, stage)
    return StageTerms(
        index=stage.index,
        devices=stage.devices,
        num_layers=len(stage.layers),
        first_layer=stage.layers[0],
        last_layer=stage.layers[-1],
        forward_seconds=stage.forward_seconds,
        backward_seconds=stage.backward_seconds,
        receive_seconds=_receive_seconds(plan, stage),
        stage_seconds=seconds,
        optimizer_seconds=stage.optimizer_seconds,
        behind_seconds=behind,
        slack_seconds=largest_seconds - (seconds + behind),
        memory=stage.memory,
        capacity_bytes=stage.capacity_bytes,
        free_bytes=stage.capacity_bytes - stage.peak_bytes,
        capacity_origin=plan.cluster.device(stage.devices[0]).memory_origin,
    )


def _cut_terms(plan: Plan, index: int) -> CutTerms:
    transfers = [transfer for transfer in plan.transfers if transfer.to_stage == index]
    forward = sum(transfer.seconds for transfer in transfers)
    backward = sum(transfer.backward_seconds for transfer in transfers)
    return CutTerms(
        from_stage=index - 1,
        to_stage=index,
        after_layer=plan.stages[index - 1].layers[-1],
        before_layer=plan.stages[index].layers[0],
        num_tensors=len(transfers),
        bytes=sum(transfer.bytes for transfer in transfers),
        forward_seconds=forward,
        backward_seconds=backward,
        per_step_seconds=plan.schedule.num_microbatches * (forward + backward),
    )
