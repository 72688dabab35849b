"""``autopart run``: a plan for real, with what was predicted beside what was measured."""

from __future__ import annotations

from typing import Annotated

import typer

from autopart.cli.console import print_result, progress_bar, write_result
from autopart.cli.options import JsonOut, ModelText, Output, PlanFile

__all__ = ["run"]


def run(
    plan_file: PlanFile,
    model: ModelText,
    steps: Annotated[int, typer.Option(min=1, help="timed steps")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="steps before them")] = 2,
    single: Annotated[bool, typer.Option(
        "--single/--no-single", help="run the unsplit model on one device too"
    )] = True,
    layers: Annotated[bool, typer.Option(
        "--layers/--no-layers", help="time every layer after the steps, for `autopart explain`"
    )] = True,
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Run a plan, one process per device, and show what was predicted beside what was measured."""
    from autopart.schema.store import dump, load_plan

    plan = load_plan(plan_file)
    from autopart import api
    from autopart.reporting import measurement_text

    with progress_bar() as progress:
        measured = api.run_source(
            plan, model, steps=steps, warmup=warmup, single=single, layers=layers, progress=progress
        )
    write_result(measured, output)
    print_result(dump(measured) if json_out else measurement_text(measured, plan))
