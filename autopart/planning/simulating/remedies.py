"""What kept the devices of a run from computing, and what to change, each simulated with the times as measured."""

from __future__ import annotations

from dataclasses import replace

from autopart.planning.simulating.hiding import hidden
from autopart.planning.simulating.simulate import simulate
from autopart.schema.job import ScheduleName
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan, PlanWarning
from autopart.units import format_seconds

__all__ = ["remedies"]

LEAST_UTILISATION, MOST_BUBBLE = 0.8, 0.1
_WORTH_SAYING = 1.02
"""times the samples per second"""
_MOST_SAID = 3


def remedies(plan: Plan, measured: Measurement) -> tuple[PlanWarning, ...]:
    """A warning for every device that computed less than 80 % of a step, and for a bubble above 10 %.

    Args:
        plan: as it was run.
        measured: of that run.
    """
    busy: dict[str, float] = {}
    for stage in measured.stages:
        busy[stage.device] = busy.get(stage.device, 0.0) + stage.busy_seconds
    if len(busy) < 2:
        return ()
    step = measured.median_step_seconds
    idle = [device for device, seconds in busy.items() if seconds < LEAST_UTILISATION * step]
    if not idle and measured.bubble_fraction <= MOST_BUBBLE:
        return ()
    found = [_idle(device, busy[device] / step, measured) for device in idle]
    if measured.bubble_fraction > MOST_BUBBLE:
        found.append(("bubble", f"the devices computed {1 - measured.bubble_fraction:.0%} of the steps' time"))
    what = _what_to_change(plan, measured)
    return tuple(PlanWarning(code=code, message=message, suggestion=what) for code, message in found)


def _idle(device: str, share: float, measured: Measurement) -> tuple[str, str]:
    first = next(stage for stage in measured.stages if stage.device == device)
    waits = ""
    if first.receive_seconds or first.send_seconds:
        waits = (
            f"; of {format_seconds(measured.median_step_seconds)} it waited {format_seconds(first.receive_seconds)} "
            f"for what it needed and {format_seconds(first.send_seconds)} until what it sent was taken"
        )
    return "utilisation", f"{device} computed {share:.0%} of a step{waits}"


def _what_to_change(plan: Plan, measured: Measurement) -> str:
    """The changes that give most, in the simulation of what was measured."""
    ran = _as_measured(plan, measured)
    before = ran.job.batch / simulate(ran).step_seconds
    gains = [(words, rate / before) for words, rate in _changes(ran)]
    worth = sorted((each for each in gains if each[1] >= _WORTH_SAYING), key=lambda each: -each[1])
    if not worth:
        return (
            "no change tried (more micro-batches, zero-bubble, receives posted early, links that take no time) gives "
            "2 %: another plan is needed; `autopart plan` learns from undisturbed runs"
        )
    return "; ".join(f"{words} gives {gain - 1:+.0%}" for words, gain in worth[:_MOST_SAID]) + " (simulated)"


def _changes(ran: Plan) -> list[tuple[str, float]]:
    """Words, and samples per second."""
    batch, num, name = ran.job.batch, ran.schedule.num_microbatches, ran.schedule.name
    more = _under(ran, name, 2 * num)
    found = [(f"--batch {2 * batch} in {2 * num} micro-batches of the same size", 2 * batch / more)]
    plain = all(stage.data_parallel == 1 and not stage.recompute for stage in ran.stages)
    if ran.job.mode == "train" and name != "zero-bubble" and plain:
        found.append(("--schedule zero-bubble", batch / _under(ran, "zero-bubble", num)))
    early = hidden(ran)
    if early is not ran:
        found.append(("--prefetch auto", batch / early.prediction.step_seconds))
    direct = tuple(replace(each, seconds=0.0, backward_seconds=0.0) for each in ran.transfers)
    if ran.transfers:
        found.append(("links that take no time (the most that faster ones or --compress can give)",
                      batch / simulate(replace(ran, transfers=direct)).step_seconds))  # fmt: skip
    return found


def _under(ran: Plan, name: ScheduleName, num_microbatches: int) -> float:
    """Seconds of a step."""
    schedule = replace(ran.schedule, name=name, num_microbatches=num_microbatches)
    return simulate(replace(ran, schedule=schedule)).step_seconds


def _as_measured(plan: Plan, measured: Measurement) -> Plan:
    stages = tuple(
        replace(
            stage, forward_seconds=run.forward_seconds, backward_seconds=run.backward_seconds,
            optimizer_seconds=run.optimizer_seconds,
        )
        for stage, run in zip(plan.stages, measured.stages, strict=True)
    )
    return replace(plan, stages=stages)
