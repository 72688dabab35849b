"""Communication hidden behind computing: receives posted early, and more forwards before the first backward.

Posting early costs nothing but what is sent, which torch's runtime keeps to the end of a step; a deeper warm-up keeps
the activations of more micro-batches.  Both are for gloo: NCCL works in the order of posting.
"""

from __future__ import annotations

from dataclasses import replace

from autopart.orders import in_flight, orders_of
from autopart.planning.simulating.simulate import simulate, warmup
from autopart.schema.job import ScheduleName
from autopart.schema.plan import Plan, Schedule, Stage
from autopart.units import format_bytes, format_seconds

__all__ = ["hidden", "hiding_note"]

_WORTH_IT = 0.97
"""of the step time as planned; what is gained beyond is more than the simulation is off by on fast links"""


def hidden(plan: Plan, prefetch: int | None = None) -> Plan:
    """The plan with the receives posted early, as much as its simulation says that it pays and its memory allows.

    Where the user left the schedule of a training to the planner, torch's interleaved order of one stage per device may
    take 1F1B's place: it has about twice the warm-up.

    Args:
        plan: as planned.
        prefetch: how many computations early, 0 for torch's way; None: as early as can be, where it pays.

    Returns:
        A plan with ``schedule.prefetch``, its prediction and its stages' memory; the same one where nothing is gained.
    """
    if prefetch is not None:
        return plan if prefetch == plan.schedule.prefetch else _with(plan, plan.schedule.name, prefetch)
    if plan.schedule.prefetch or not _may_hide(plan):
        return plan
    owners, num = plan.ranks, plan.schedule.num_microbatches
    names: list[ScheduleName] = [plan.schedule.name]
    if plan.job.mode == "train" and plan.schedule.name == "1f1b" and plan.job.schedule is None and _one_each(plan):
        names.append("interleaved")
    found = [_with(plan, name, max(len(order) for order in orders_of(name, owners, num))) for name in names]
    fitting = [each for each in found if all(s.peak_bytes <= s.capacity_bytes for s in each.stages)]
    best = min(fitting, key=lambda each: each.prediction.step_seconds, default=plan)
    return best if best.prediction.step_seconds < _WORTH_IT * simulate(plan).step_seconds else plan


def hiding_note(plan: Plan, hides: Plan) -> str:
    """In a sentence, what ``hidden`` changed; empty if nothing."""
    before, after = plan.schedule, hides.schedule
    if (before.name, before.prefetch) == (after.name, after.prefetch):
        return ""
    more_bytes = max(new.peak_bytes - old.peak_bytes for old, new in zip(plan.stages, hides.stages, strict=True))
    order = "" if before.name == after.name else f" and {after.name}'s deeper warm-up is taken instead of {before.name}"
    when = f"up to {after.prefetch} computations before they are needed" if after.prefetch else "when they are needed"
    memory = f", for at most {format_bytes(more_bytes)} more on a device" if more_bytes > 0 else ""
    return (
        f"Receives are posted {when}{order}: a step of {format_seconds(hides.prediction.step_seconds)} instead of "
        f"{format_seconds(simulate(plan).step_seconds)} as simulated{memory}."
    )


def _one_each(plan: Plan) -> bool:
    return plan.ranks == tuple(range(len(plan.stages)))


def _may_hide(plan: Plan) -> bool:
    """Several ranks on processors, with something to send; text is generated in rounds that are simulated otherwise."""
    used = {name for stage in plan.stages for name in stage.devices}
    backends = {plan.cluster.device(name).backend for name in used}
    return backends == {"cpu"} and bool(plan.transfers) and len(set(plan.ranks)) > 1 and plan.generation is None


def _with(plan: Plan, name: ScheduleName, prefetch: int) -> Plan:
    """The plan under a schedule with receives posted early."""
    num, training = plan.schedule.num_microbatches, plan.job.mode == "train"
    schedule = Schedule(
        name=name, num_microbatches=num, prefetch=prefetch,
        warmup=warmup(name, len(plan.stages), num, training, plan.ranks),
    )
    changed = replace(plan, schedule=schedule)
    old_seconds, seconds = plan.prediction.step_seconds, simulate(changed).step_seconds
    busy = 1 - plan.prediction.bubble_fraction
    cost = plan.prediction.cost_per_million
    prediction = replace(
        plan.prediction, step_seconds=seconds, throughput_per_second=plan.job.batch / seconds,
        bubble_fraction=min(1.0, max(0.0, 1 - busy * old_seconds / seconds)),
        cost_per_million=None if cost is None else cost * seconds / old_seconds,
    )
    stages = (_stage(plan, stage, schedule, old_seconds / seconds) for stage in plan.stages)
    return replace(changed, prediction=prediction, stages=tuple(stages))


def _stage(plan: Plan, stage: Stage, schedule: Schedule, faster: float) -> Stage:
    memory, num = stage.memory, schedule.num_microbatches
    if plan.job.mode == "train":
        alive, before = (in_flight(name, plan.ranks, num)[stage.index] for name in (schedule.name, plan.schedule.name))
        memory = replace(
            memory, activations=memory.activations * alive // before, loss=memory.loss * alive // before,
            communication=memory.communication + _sent_bytes(plan, stage, schedule),
        )
    return replace(stage, memory=memory, peak_bytes=memory.total, utilisation=min(1.0, stage.utilisation * faster))


def _sent_bytes(plan: Plan, stage: Stage, schedule: Schedule) -> int:
    """What a stage's messages take more than under the plan's own schedule: all of them live to the end of the step."""
    if not schedule.prefetch or plan.schedule.prefetch or plan.schedule.name not in ("gpipe", "1f1b"):
        return 0
    num = schedule.num_microbatches
    later = num - min(num, 2) if plan.schedule.name == "1f1b" else 0
    out = sum(each.bytes for each in plan.transfers if each.from_stage == stage.index)
    back = sum(each.bytes for each in plan.transfers if each.to_stage == stage.index and each.backward_seconds)
    return num * out + later * back
