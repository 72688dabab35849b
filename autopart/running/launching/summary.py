"""From what the ranks measured to a Measurement, and to the sentence that says whether splitting paid."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from autopart.running.launching.records import RankResult, StageSeconds
from autopart.running.mesh import processes
from autopart.schema.measurement import Compression, Measurement, SingleRun, StageMeasurement
from autopart.schema.plan import Plan
from autopart.schema.timeline import Event

__all__ = ["single_run", "summarize"]

MOST_LATE = 0.05
"""of the parts of a step that are to take a given time, that may take longer"""


def summarize(
    plan: Plan,
    results: Sequence[RankResult],
    single: SingleRun | None,
    single_skipped_because: str,
    *,
    alternating: bool = False,
) -> Measurement:
    """The measurement of a run of ``plan``.

    Args:
        plan: what was run.
        results: of its ranks, in order.
        single: the single-device run beside it.
        single_skipped_because: why there is none; empty if there is.
        alternating: their steps were taken in turn.
    """
    step_seconds = tuple(max(times) for times in zip(*(result.step_seconds for result in results), strict=True))
    typical_seconds = median(step_seconds)
    throughput = plan.job.batch / typical_seconds
    gain = throughput / single.throughput_per_second - 1 if single else None
    notes = dict.fromkeys((*(note for result in results for note in result.notes), *_kept(results)))
    return Measurement(
        mode=plan.job.mode,
        batch=plan.job.batch,
        num_microbatches=plan.schedule.num_microbatches,
        schedule=plan.schedule.name,
        step_seconds=step_seconds,
        median_step_seconds=typical_seconds,
        total_seconds=sum(step_seconds),
        throughput_per_second=throughput,
        losses=results[processes(plan)[-1][0]].losses,
        predicted_step_seconds=plan.prediction.step_seconds,
        pace=_pace(plan, results),
        core_share=min(result.core_share for result in results),
        stages=tuple(
            _stage(plan, stage, [results[number] for number in numbers], step_seconds)
            for stage, numbers in enumerate(processes(plan))
        ),
        single=single,
        single_skipped_because=single_skipped_because,
        gain=gain,
        alternating=alternating and single is not None,
        verdict=" ".join([_verdict(plan, throughput, single, gain, single_skipped_because), *notes]),
        versions=results[0].versions,
        events=tuple(
            event for stage, numbers in enumerate(processes(plan))
            for event in _events(plan, stage, results[numbers[0]])
        ),
        compression=_compression(results, single, results[processes(plan)[-1][0]].losses),
    )


def _compression(
    results: Sequence[RankResult], single: SingleRun | None, losses: tuple[float, ...]
) -> Compression | None:
    sent_bytes = sum(each.sent_bytes for each in results)
    plain_bytes = sum(each.plain_bytes for each in results)
    if sent_bytes == plain_bytes:
        return None
    unsplit = single.losses[-1:] if single else ()
    return Compression(
        codec=results[0].compress or "as planned",
        sent_bytes=sent_bytes,
        plain_bytes=plain_bytes,
        loss_change=losses[-1] / unsplit[0] - 1 if losses and unsplit and unsplit[0] else None,
    )


def _events(plan: Plan, stage: int, result: RankResult) -> tuple[Event, ...]:
    """What a rank did in the last step for a stage; what is the rank's, with its first one."""
    first = _first_stage(plan, result.rank)
    return tuple(
        Event(stage=stage, kind=act.kind, microbatch=act.microbatch, start_seconds=act.start_seconds,
              end_seconds=act.end_seconds, gradient=act.gradient)
        for act in result.acts if (first if act.stage is None else act.stage) == stage
    )  # fmt: skip


def _kept(results: Sequence[RankResult]) -> tuple[str, ...]:
    """How well the plan's own times were kept, where they were to be."""
    num_paced, num_late = sum(each.num_paced for each in results), sum(each.num_late for each in results)
    if not num_paced:
        return ()
    late = f"Every stage took the plan's own times; {num_late} of {num_paced} parts of a step took longer than theirs"
    if num_late <= MOST_LATE * num_paced:
        return (f"{late}.",)
    worst = max(results, key=lambda each: each.num_late / max(1, each.num_paced))
    return (f"{late}, most on {worst.device}: too many for the step to say much; emulate slower devices.",)


def _pace(plan: Plan, results: Sequence[RankResult]) -> float | None:
    """Of the slowest rank: it sets the step."""
    known = [
        stage.pace_seconds / result.pace_seconds
        for stage, result in ((plan.stages[_first_stage(plan, result.rank)], result) for result in results)
        if stage.pace_seconds and result.pace_seconds
    ]
    return min(known) if len(known) == len(results) else None


def single_run(result: RankResult, batch: int) -> SingleRun:
    """The single-device run that one rank measured."""
    typical_seconds = median(result.step_seconds)
    return SingleRun(
        device=result.device,
        step_seconds=result.step_seconds,
        median_step_seconds=typical_seconds,
        throughput_per_second=batch / typical_seconds,
        peak_bytes=result.peak_bytes,
        memory_origin=result.memory_origin,
        losses=result.losses,
    )


def _first_stage(plan: Plan, process: int) -> int:
    return next(stage for stage, numbers in enumerate(processes(plan)) if process in numbers)


def _stage(plan: Plan, stage: int, results: Sequence[RankResult], step_seconds: Sequence[float]) -> StageMeasurement:
    """One stage, of several devices as the first ran it, with the most memory that any needed.

    Of a device with several stages the first has what belongs to the device: optimizer, memory.
    """
    num_microbatches, result = plan.schedule.num_microbatches, results[0]
    first = _first_stage(plan, result.rank)
    leads = first == stage
    own: RankResult | StageSeconds = next((each for each in result.stages if each.index == stage), result)
    optimizer_seconds = result.optimizer_seconds if leads else (0.0,) * len(step_seconds)
    parts = zip(own.forward_seconds, own.backward_seconds, optimizer_seconds, strict=True)
    busy_seconds = [sum(part) for part in parts]
    shares = [busy / step for busy, step in zip(busy_seconds, step_seconds, strict=True)]
    return StageMeasurement(
        index=stage,
        device=result.device,
        forward_seconds=median(own.forward_seconds) / num_microbatches,
        backward_seconds=median(own.backward_seconds) / num_microbatches,
        optimizer_seconds=median(optimizer_seconds),
        busy_seconds=median(busy_seconds),
        utilisation=median(shares),
        peak_bytes=max(each.peak_bytes for each in results) if leads else 0,
        memory_origin=result.memory_origin if leads else f"in that of stage {first}",
        layer_seconds=result.layer_seconds if len(result.stages) < 2 else (),
        receive_seconds=median(result.receive_seconds or (0.0,)) if leads else 0.0,
        send_seconds=median(result.send_seconds or (0.0,)) if leads else 0.0,
        sent_bytes=result.out_bytes if leads else 0,
        received_bytes=result.in_bytes if leads else 0,
    )


def _verdict(
    plan: Plan, throughput: float, single: SingleRun | None, gain: float | None, skipped_because: str
) -> str:
    num_devices = len(_devices(plan))
    used = " and ".join(filter(None, (", ".join(_devices(plan)[:-1]), _devices(plan)[-1])))
    if single is None or gain is None:
        return f"{used} ran {throughput:.4g} samples/s; whether splitting paid is not known: {skipped_because}."
    ratio = throughput / single.throughput_per_second
    rates = f"{throughput:.4g} samples/s against {single.throughput_per_second:.4g} on {single.device} alone"
    if num_devices == 1:
        return f"Nothing was split: {used} ran {rates}, {ratio:.2f}x."
    if gain > 0:
        return f"Splitting paid: {used} ran {rates}, {ratio:.2f}x."
    return f"Splitting did not pay: {used} ran {rates}, {ratio:.2f}x; use {single.device} alone."


def _devices(plan: Plan) -> list[str]:
    return list(dict.fromkeys(name for stage in plan.stages for name in stage.devices))
