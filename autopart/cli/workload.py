"""``autopart plan --workload FILE``: places a workload from elsewhere; its devices are in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import note, print_result
from autopart.errors import UsageError
from autopart.schema.job import SolverName

__all__ = ["Contiguous", "WorkloadFile", "place_workload"]

WorkloadFile = Annotated[Path | None, typer.Option(
    "--workload", metavar="FILE", help="in place of MODEL: a graph with its devices, as msr-fiddle/dnn-partitioning has"
)]
Contiguous = Annotated[bool | None, typer.Option(
    "--contiguous/--non-contiguous",
    help="of --workload: whether the devices follow one another as a pipeline; default: yes, as the runtime needs it",
)]


def place_workload(
    path: Path, *, model: str | None, contiguous: bool | None, solver: SolverName, time_limit_seconds: float,
    gap: float, json_out: bool, output: Path | None,
) -> None:
    """Reads, places and prints.

    Raises:
        UsageError: there is a model too.
        FileFormatError: the file is no workload.
        InfeasibleError: no placement fits.
    """
    if model is not None:
        raise UsageError(f"--workload {path} and the model {model} are two things to place; give one of them")
    from autopart.planning import plan_workload
    from autopart.reporting import workload_text
    from autopart.schema.store import write_text
    from autopart.schema.workloadfile import dump_answer, load_workload

    answer = plan_workload(
        load_workload(path), contiguous_only=contiguous is not False, solver=solver,
        time_limit_seconds=time_limit_seconds, gap=gap,
    )
    if output is not None:
        write_text(dump_answer(answer), output)
        note(f"wrote {output}")
    print_result(dump_answer(answer) if json_out else workload_text(answer))
