"""A plan run for real: as it is, or with stand-ins for its devices, or with codecs at its cuts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autopart import modelsource, pastruns, planning, profiling, splitting
from autopart.errors import UsageError
from autopart.progress import Progress, silent
from autopart.schema.codec import CodecName
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan
from autopart.verbs import same_model

if TYPE_CHECKING:
    from autopart import running

__all__ = ["run_source"]


def run_source(
    plan: Plan, source_text: str, *, steps: int = 5, warmup: int = 2, single: bool = True, layers: bool = True,
    compress: CodecName | None = None, compress_gradients: Literal["none", "fp16", "bf16"] = "none",
    prefetch: int | None = None, emulate: Path | None = None, throttle: running.Throttle = "sleep",
    progress: Progress = silent,
) -> Measurement:  # fmt: skip
    """Run a plan, one process per stage, and the unsplit model on one device beside it; the next plan learns from it.

    With ``layers`` every layer is timed after the steps too; ``Measurement.lesson`` says what is learned.

    Args:
        plan: of the source's model.
        source_text: the model source as typed.
        steps: timed steps.
        warmup: steps before them; at least 2 where devices are emulated, since their memory is watched then.
        single: run the unsplit model too.
        layers: time every layer too.
        compress: a codec for what crosses from device to device, instead of what the plan says.
        compress_gradients: what the gradients of data-parallel replicas travel as.
        prefetch: how many computations before it is needed a receive is posted; None: as the plan says, or as many as
            can be and a deeper warm-up where the plan's links make that pay (``planning.hidden``).
        emulate: a cluster file whose devices stand for the plan's of the same names, with its memory and links.
        throttle: how devices whose speed is below 1 are made slow.
        progress: told of every step.

    Raises:
        UsageError: a device of the plan is not here, or the plan is of another model.
        RunError: a rank failed; OutOfMemoryError: its device's memory did not do.
    """
    from autopart import running  # who only plans does not wait for it

    planned, plan = plan, planning.hidden(plan, prefetch)
    if emulate is not None:
        plan, warmup = running.emulated_plan(plan, profiling.read_cluster(cluster_file=emulate)), max(2, warmup)
    others = [device.name for device in plan.cluster.devices if device.backend == "cuda"]
    if throttle != "sleep" and others:
        raise UsageError(f"--throttle {throttle} is for processor cores, not for {others[0]}; give --emulate FILE too")
    if throttle == "quota":
        running.check_quota()
    splitting.stage_placements(plan)
    same_model(plan, modelsource.load(source_text, dtype=plan.job.dtype).model)
    measured = running.run(
        plan, source_text, steps=steps, warmup=warmup, single=single, layers=layers, compress=compress,
        compress_gradients=compress_gradients, emulated=emulate is not None, throttle=throttle, progress=progress,
    )  # fmt: skip
    if compress is not None or compress_gradients != "none" or emulate is not None or throttle != "sleep":
        lesson = "The next plan learns nothing of this run: it was not run as planned."
    else:
        lesson = pastruns.remember(plan, measured)
    notes = () if emulate is None else running.emulation_notes(plan, throttle)
    verdict = " ".join(filter(None, (measured.verdict, planning.hiding_note(planned, plan))))
    return dataclasses.replace(
        measured, verdict=verdict, lesson=lesson, emulation=notes, warnings=planning.remedies(plan, measured)
    )
