"""``autopart export``: a plan in the words of other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autopart.cli.console import note, print_result
from autopart.cli.options import OptionalModelText, PlanFile
from autopart.cli.outputs import writable
from autopart.errors import UsageError

if TYPE_CHECKING:
    from autopart.program import Program
    from autopart.schema.plan import Plan

__all__ = ["export"]


def export(
    plan_file: PlanFile,
    to: Annotated[Literal[
        "accelerate", "torch", "python", "vllm", "llamacpp", "megatron", "deepspeed", "dot", "csv",
    ], typer.Option("--to", help="whose words; python needs MODEL, accelerate can use it")],
    model: OptionalModelText = None,
    output: Annotated[Path | None, typer.Option(
        "--output", "-o", metavar="FILE", callback=writable, help="write there instead"
    )] = None,
) -> None:
    """Print a plan in the words of another engine.

    autopart export plan.json --to vllm

    autopart export plan.json model.py --to python -o stages.py
    """
    from autopart import exporting
    from autopart.schema.store import load_plan, write_text

    plan = load_plan(plan_file)
    if to == "python":
        if model is None:
            raise UsageError("--to python writes the model's own operators: give MODEL after the plan")
        text = exporting.to_python(plan, _program(plan, model))
    elif to == "accelerate" and model is not None:
        text = exporting.to_accelerate(plan, _program(plan, model))
    elif model is not None:
        raise UsageError(f"--to {to} needs the plan only; leave {model} away")
    else:
        text = exporting.export(plan, to)
    if output is None:
        print_result(text)
    else:
        write_text(text, output)
        note(f"wrote {output}")


def _program(plan: Plan, model: str) -> Program:
    """The model traced for one of the plan's micro-batches."""
    from autopart import api
    from autopart.modelsource import with_batch
    from autopart.verbs import same_model

    source = api.load_source(model, dtype=plan.job.dtype)
    same_model(plan, source.model)
    piece = with_batch(source, plan.job.batch // plan.schedule.num_microbatches)
    return api.trace_source(piece, training=plan.job.mode == "train", opaque=plan.model.opaque)
