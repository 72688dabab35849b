"""``autopart export``: a plan in the words of other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import note, print_result
from autopart.cli.options import PlanFile

__all__ = ["export"]


def export(
    plan_file: PlanFile,
    to: Annotated[Literal["accelerate", "torch", "csv"], typer.Option("--to", help="whose words")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="write there instead")] = None,
) -> None:
    """Print a plan as accelerate's device_map, torch pipelining's split_spec, or a table of layers."""
    from autopart import exporting
    from autopart.schema.store import load_plan, write_text

    text = exporting.export(load_plan(plan_file), to)
    if output is None:
        print_result(text)
    else:
        write_text(text, output)
        note(f"wrote {output}")
