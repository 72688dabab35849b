"""``autopart report``: a plan's simulated step as a Chrome trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import note
from autopart.cli.options import PlanFile

__all__ = ["report"]


def report(
    plan_file: PlanFile,
    trace: Annotated[Path, typer.Option("--trace", metavar="FILE", help="write the timeline there, as JSON")],
) -> None:
    """Write the simulated timeline of a step for chrome://tracing or ui.perfetto.dev."""
    from autopart import planning
    from autopart.reporting import chrome_trace
    from autopart.schema.store import load_plan, write_text

    plan = load_plan(plan_file)
    write_text(chrome_trace(planning.simulate(plan), plan), trace)
    note(f"wrote {trace}; open it at chrome://tracing or ui.perfetto.dev")
