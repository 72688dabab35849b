"""``autopart report``: a plan as an HTML file, and its simulated step as a Chrome trace; needs no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autopart.cli.console import note
from autopart.cli.options import PlanFile
from autopart.cli.outputs import writable
from autopart.errors import UsageError

if TYPE_CHECKING:
    from autopart.schema.measurement import Measurement
    from autopart.schema.plan import Plan

__all__ = ["report"]


def report(
    plan_file: PlanFile,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", metavar="FILE", callback=writable, help="write the HTML report there: one file, opens offline"
    )] = None,
    measured: Annotated[Path | None, typer.Option(
        "--measured", metavar="FILE", help="a measurement, as `autopart run -o` writes it, to show beside"
    )] = None,
    trace: Annotated[Path | None, typer.Option(
        "--trace", metavar="FILE", callback=writable,
        help="write the timeline for chrome://tracing or ui.perfetto.dev, as JSON; --measured adds the run's last step",
    )] = None,
) -> None:
    """Write a plan as an HTML report, and its timeline as a Chrome trace.

    autopart report plan.json -o report.html

    autopart report plan.json --measured run.json -o report.html --trace trace.json
    """
    if output is None and trace is None:
        raise UsageError("nothing to write: give -o report.html, or --trace trace.json")
    from autopart import planning, reporting
    from autopart.schema.store import load_measurement, load_plan, write_text

    plan = load_plan(plan_file)
    timeline = planning.simulate(plan)
    measurement = None if measured is None else load_measurement(measured)
    replay = None if measurement is None else planning.simulate(_as_measured(plan, measurement))
    if output is not None:
        write_text(reporting.report_html(
            plan, timeline, planning.explain(plan), measurement=measurement, replay=replay
        ), output)
        note(f"wrote {output}")
    if trace is not None:
        if measurement is not None and not measurement.events:
            note(f"autopart: warning: {measured} has no events, so the trace is simulated only; run the plan again")
        write_text(reporting.chrome_trace(timeline, plan, measurement.events if measurement else ()), trace)
        note(f"wrote {trace}; open it at chrome://tracing or ui.perfetto.dev")


def _as_measured(plan: Plan, measurement: Measurement) -> Plan:
    """The plan with the stages' times as they were measured.

    Raises:
        UsageError: the measurement is of another plan.
    """
    ran = [(run.index, run.device) for run in measurement.stages]
    planned = [(stage.index, stage.devices[0]) for stage in plan.stages]
    if ran != planned or measurement.num_microbatches != plan.schedule.num_microbatches:
        raise UsageError(
            f"the measurement is of another plan: {len(ran)} stages with {measurement.num_microbatches} micro-batches, "
            f"the plan has {len(planned)} with {plan.schedule.num_microbatches}; give the one of `autopart run` on it"
        )
    stages = tuple(
        dataclasses.replace(
            stage, forward_seconds=run.forward_seconds, backward_seconds=run.backward_seconds,
            optimizer_seconds=run.optimizer_seconds,
        )
        for stage, run in zip(plan.stages, measurement.stages, strict=True)
    )
    return dataclasses.replace(plan, stages=stages)
