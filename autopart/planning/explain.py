"""Where the time and memory of a plan go."""

from __future__ import annotations

from autopart.planning.lateness import last_update_seconds
from autopart.planning.searching.options import LOOPED
from autopart.schema.explanation import CutTerms, Explanation, StageTerms
from autopart.schema.plan import Plan, Stage

__all__ = ["explain"]


def explain(plan: Plan) -> Explanation:
    """Each term of time and memory per stage, the bottleneck stage, and what each cut costs; no formatting."""
    times = [_receive_seconds(plan, stage) + stage.forward_seconds + stage.backward_seconds for stage in plan.stages]
    periods = [time + _behind_seconds(plan, stage) for time, stage in zip(times, plan.stages, strict=True)]
    bottleneck = max(range(len(times)), key=periods.__getitem__)
    repeats = 0 if plan.job.objective == "latency" else plan.schedule.num_microbatches - 1
    looped = plan.schedule.name in LOOPED
    repeated, once = repeats * periods[bottleneck], last_update_seconds(plan)
    return Explanation(
        num_microbatches=plan.schedule.num_microbatches,
        stages=tuple(_stage_terms(plan, stage, periods[bottleneck]) for stage in plan.stages),
        cuts=tuple(_cut_terms(plan, index) for index in range(1, len(plan.stages))),
        bottleneck=bottleneck,
        one_microbatch_seconds=sum(times),
        repeated_seconds=repeated,
        once_seconds=once,
        objective_seconds=plan.proof.objective_seconds if looped else sum(times) + repeated + once,
        step_seconds=plan.prediction.step_seconds,
        bubble_fraction=plan.prediction.bubble_fraction,
    )


def _receive_seconds(plan: Plan, stage: Stage) -> float:
    return sum(t.seconds + t.backward_seconds for t in plan.transfers if t.to_stage == stage.index)


def _behind_seconds(plan: Plan, stage: Stage) -> float:
    """What 1F1B makes a stage wait for: the boundary behind it, both ways."""
    behind = (t for t in plan.transfers if t.from_stage == stage.index and plan.schedule.name == "1f1b")
    return sum(t.seconds + t.backward_seconds for t in behind)


def _stage_terms(plan: Plan, stage: Stage, largest_seconds: float) -> StageTerms:
    receive = _receive_seconds(plan, stage)
    seconds, behind = receive + stage.forward_seconds + stage.backward_seconds, _behind_seconds(plan, stage)
    return StageTerms(
        index=stage.index,
        devices=stage.devices,
        num_layers=len(stage.layers),
        first_layer=stage.layers[0],
        last_layer=stage.layers[-1],
        forward_seconds=stage.forward_seconds,
        backward_seconds=stage.backward_seconds,
        receive_seconds=receive,
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
