"""A run in words: what was predicted beside what was measured, and the unsplit model beside the split one."""

from __future__ import annotations

import itertools

from autopart.reporting.tables import facts, heading, percent, rate, table, times
from autopart.schema.measurement import Measurement, SingleRun, StageMeasurement
from autopart.schema.plan import Plan, Stage
from autopart.units import format_bytes, format_seconds

__all__ = ["measurement_text"]


def measurement_text(measurement: Measurement, plan: Plan) -> str:
    """The verdict of a run, then step and stages predicted and measured, then the single device beside them."""
    paragraphs = (
        measurement.verdict,
        heading(_steps_line(measurement), _step(measurement, plan)),
        heading("Stages, predicted / measured (times per micro-batch)", _stages(measurement, plan)),
        heading("Between computations, per step", _waits(measurement)),
        heading("Split and unsplit", _single(measurement)),
        heading("Loss", _losses(measurement)),
        heading("Compression", _compression(measurement)),
        heading("Warnings", _warnings(measurement)),
        "\n".join(measurement.emulation),
        measurement.lesson,
        heading("On", facts([("versions", ", ".join(measurement.versions))]) if measurement.versions else ""),
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _steps_line(measurement: Measurement) -> str:
    num_steps = len(measurement.step_seconds)
    return (
        f"{num_steps} timed step{'s' if num_steps != 1 else ''} of batch {measurement.batch} in "
        f"{measurement.num_microbatches} micro-batch{'es' if measurement.num_microbatches != 1 else ''}, "
        f"{measurement.schedule}"
    )


def _step(measurement: Measurement, plan: Plan) -> str:
    predicted, measured = measurement.predicted_step_seconds, measurement.median_step_seconds
    expected = plan.prediction.throughput_per_second
    rows = [
        ("step (median)", format_seconds(predicted), format_seconds(measured), _off(predicted, measured)),
        ("throughput", rate(expected), rate(measurement.throughput_per_second),
         _off(expected, measurement.throughput_per_second)),
    ]
    spread = f"{format_seconds(min(measurement.step_seconds))} … {format_seconds(max(measurement.step_seconds))}"
    text = table(("", "predicted", "measured", "measured is"), rows) + f"\nsteps took {spread}"
    return text if measurement.pace is None else f"{text}\n{_pace(measurement.pace)}"


def _pace(pace: float) -> str:
    """What the machine did between measuring the layers and running the plan."""
    text = f"the machine ran a fixed piece of work at {times(pace)} the speed it had when the layers were measured"
    return text if 0.9 <= pace <= 1.1 else f"{text}: plan with --refresh to measure them anew"


def _stages(measurement: Measurement, plan: Plan) -> str:
    headers = ["stage", "device", "forward", "backward", "optimizer", "busy", "utilisation", "memory"]
    rows = [
        _stage_row(plan.stages[each.index], each, measurement.num_microbatches) for each in measurement.stages
    ]
    if measurement.mode == "infer":
        headers = headers[:3] + headers[5:]
        rows = [row[:3] + row[5:] for row in rows]
    origins = sorted({each.memory_origin for each in measurement.stages if each.memory_origin})
    return "\n".join((table(headers, rows, words=(0, 1)), *(f"memory measured: {origin}" for origin in origins)))


def _waits(measurement: Measurement) -> str:
    """What every device waited for; told with its first stage."""
    firsts = {each.device: each for each in reversed(measurement.stages)}
    told = sorted(firsts.values(), key=lambda each: each.index)
    if not any(each.receive_seconds or each.send_seconds or each.sent_bytes for each in told):
        return ""
    rows = [
        (each.device, format_seconds(each.receive_seconds), format_seconds(each.send_seconds),
         format_bytes(each.sent_bytes), format_bytes(each.received_bytes))
        for each in told
    ]
    bubble = f"bubble {percent(measurement.bubble_fraction)} of the devices' time"
    headers = ("device", "waits to receive", "waits until sent", "sends", "receives")
    return f"{table(headers, rows, words=(0,))}\n{bubble}"


def _warnings(measurement: Measurement) -> str:
    """Each with what to change; one piece of advice for several is said once, below the last."""
    groups = itertools.groupby(measurement.warnings, lambda each: each.suggestion)
    return "\n".join(
        line for suggestion, found in groups
        for line in (*(f"  {each.message}" for each in found), f"    → {suggestion}")
    )


def _stage_row(stage: Stage, run: StageMeasurement, num_microbatches: int) -> tuple[str, ...]:
    busy = num_microbatches * (stage.forward_seconds + stage.backward_seconds) + stage.optimizer_seconds
    return (
        str(run.index),
        run.device,
        _pair(format_seconds(stage.forward_seconds), format_seconds(run.forward_seconds)),
        _pair(format_seconds(stage.backward_seconds), format_seconds(run.backward_seconds)),
        _pair(format_seconds(stage.optimizer_seconds), format_seconds(run.optimizer_seconds)),
        _pair(format_seconds(busy), format_seconds(run.busy_seconds)),
        _pair(percent(stage.utilisation, digits=0), percent(run.utilisation, digits=0)),
        _pair(format_bytes(stage.peak_bytes), format_bytes(run.peak_bytes)),
    )


def _single(measurement: Measurement) -> str:
    single = measurement.single
    if single is None:
        return f"  no single-device run: {measurement.single_skipped_because}"
    rows = [
        _split_row(measurement),
        _unsplit_row(single),
    ]
    text = table(("", "step (median)", "throughput", "peak memory per device"), rows)
    if measurement.gain is None:
        return text
    ratio = measurement.throughput_per_second / single.throughput_per_second
    turns = "steps taken in turn" if measurement.alternating else "one run after the other"
    return f"{text}\nsplitting gives {times(ratio)} the throughput: {percent(measurement.gain, signed=True)} ({turns})"


def _split_row(measurement: Measurement) -> tuple[str, ...]:
    peaks = ", ".join(f"{each.device} {format_bytes(each.peak_bytes)}" for each in measurement.stages)
    return (
        f"split over {len(measurement.stages)}",
        format_seconds(measurement.median_step_seconds),
        rate(measurement.throughput_per_second),
        peaks,
    )


def _unsplit_row(single: SingleRun) -> tuple[str, ...]:
    return (
        f"unsplit on {single.device}",
        format_seconds(single.median_step_seconds),
        rate(single.throughput_per_second),
        f"{single.device} {format_bytes(single.peak_bytes)}",
    )


def _losses(measurement: Measurement) -> str:
    if not measurement.losses:
        return ""
    first, last = measurement.losses[0], measurement.losses[-1]
    return facts([("first step", f"{first:.6g}"), ("last step", f"{last:.6g}")])


def _compression(measurement: Measurement) -> str:
    found = measurement.compression
    if found is None:
        return ""
    saved = percent(1 - found.sent_bytes / found.plain_bytes)
    rows = [
        ("codec", found.codec),
        ("sent per step", f"{format_bytes(found.sent_bytes)} of {format_bytes(found.plain_bytes)}, {saved} saved"),
    ]
    if found.loss_change is not None:
        rows.append(("loss", f"{percent(found.loss_change, signed=True, digits=3)} against the unsplit model's"))
    elif measurement.losses:
        rows.append(("loss", "change not known: the unsplit model was not run beside it"))
    return facts(rows)


def _pair(predicted: str, measured: str) -> str:
    return f"{predicted} / {measured}"


def _off(predicted: float, measured: float) -> str:
    return percent(measured / predicted - 1, signed=True) if predicted > 0 else ""
