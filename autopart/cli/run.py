"""``autopart run``: a plan for real, with what was predicted beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, progress_bar, write_result
from autopart.cli.options import JsonOut, ModelText, Output, PlanFile, Prefetch, whole_or_auto

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
    compress: Annotated[Literal["none", "fp16", "bf16", "int8", "topk"] | None, typer.Option(
        "--compress", help="encode what crosses from device to device; changes results a little; default: as planned"
    )] = None,
    compress_gradients: Annotated[Literal["none", "fp16", "bf16"], typer.Option(
        "--compress-gradients", help="what the gradients of data-parallel replicas travel as"
    )] = "none",
    prefetch: Prefetch = "auto",
    emulate: Annotated[Path | None, typer.Option(
        "--emulate", metavar="FILE", help="stand-ins for the plan's devices: a cluster file with speeds, memory, links"
    )] = None,
    throttle: Annotated[Literal["sleep", "quota", "plan"], typer.Option(
        "--throttle", help="what slow devices take: CPU time / speed, the kernel's CPU quota, or the plan's own times"
    )] = "sleep",
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Run a plan, one process per device, and show what was predicted beside what was measured.

    autopart run plan.json model.py --steps 5

    autopart run plan.json model.py --emulate rack.yaml
    """
    from autopart.schema.store import dump, load_plan

    plan, early = load_plan(plan_file), whole_or_auto(prefetch, "--prefetch", least=0)
    from autopart import api, planning
    from autopart.reporting import measurement_text

    with progress_bar() as progress:
        measured = api.run_source(
            plan, model, steps=steps, warmup=warmup, single=single, layers=layers, compress=compress,
            compress_gradients=compress_gradients, prefetch=early, emulate=emulate, throttle=throttle,
            progress=progress,
        )  # fmt: skip
    write_result(measured, output)
    print_result(dump(measured) if json_out else measurement_text(measured, planning.hidden(plan, early)))
