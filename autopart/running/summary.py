"""From what the ranks measured to a Measurement, and to the sentence that says whether splitting paid."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from autopart.running.records import RankResult
from autopart.schema.measurement import Measurement, SingleRun, StageMeasurement
from autopart.schema.plan import Plan

__all__ = ["single_run", "summarize"]


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
    notes = dict.fromkeys(note for result in results for note in result.notes)
    return Measurement(
        mode=plan.job.mode,
        batch=plan.job.batch,
        num_microbatches=plan.schedule.num_microbatches,
        schedule=plan.schedule.name,
        step_seconds=step_seconds,
        median_step_seconds=typical_seconds,
        total_seconds=sum(step_seconds),
        throughput_per_second=throughput,
        losses=results[-1].losses,
        predicted_step_seconds=plan.prediction.step_seconds,
        pace=_pace(plan, results),
        stages=tuple(_stage(plan, result, step_seconds) for result in results),
        single=single,
        single_skipped_because=single_skipped_because,
        gain=gain,
        alternating=alternating and single is not None,
        verdict=" ".join([_verdict(plan, throughput, single, gain, single_skipped_because), *notes]),
        versions=results[0].versions,
    )


def _pace(plan: Plan, results: Sequence[RankResult]) -> float | None:
    """Of the slowest rank: it sets the step."""
    known = [
        stage.pace_seconds / result.pace_seconds
        for stage, result in zip(plan.stages, results, strict=True)
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
    )


def _stage(plan: Plan, result: RankResult, step_seconds: Sequence[float]) -> StageMeasurement:
    num_microbatches = plan.schedule.num_microbatches
    parts = zip(result.forward_seconds, result.backward_seconds, result.optimizer_seconds, strict=True)
    busy_seconds = [sum(part) for part in parts]
    shares = [busy / step for busy, step in zip(busy_seconds, step_seconds, strict=True)]
    return StageMeasurement(
        index=result.rank,
        device=result.device,
        forward_seconds=median(result.forward_seconds) / num_microbatches,
        backward_seconds=median(result.backward_seconds) / num_microbatches,
        optimizer_seconds=median(result.optimizer_seconds),
        busy_seconds=median(busy_seconds),
        utilisation=median(shares),
        peak_bytes=result.peak_bytes,
        memory_origin=result.memory_origin,
    )


def _verdict(
    plan: Plan, throughput: float, single: SingleRun | None, gain: float | None, skipped_because: str
) -> str:
    num_stages = len(plan.stages)
    used = " and ".join(filter(None, (", ".join(_devices(plan)[:-1]), _devices(plan)[-1])))
    if single is None or gain is None:
        return f"{used} ran {throughput:.4g} samples/s; whether splitting paid is not known: {skipped_because}."
    ratio = throughput / single.throughput_per_second
    rates = f"{throughput:.4g} samples/s against {single.throughput_per_second:.4g} on {single.device} alone"
    if num_stages == 1:
        return f"Nothing was split: {used} ran {rates}, {ratio:.2f}x."
    if gain > 0:
        return f"Splitting paid: {used} ran {rates}, {ratio:.2f}x."
    return f"Splitting did not pay: {used} ran {rates}, {ratio:.2f}x; use {single.device} alone."


def _devices(plan: Plan) -> list[str]:
    return [name for stage in plan.stages for name in stage.devices]
