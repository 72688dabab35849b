"""``autopart plan``: the fastest way to spread a model over devices, with its proof."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, progress_bar, write_result
from autopart.cli.options import (
    Batch,
    ClusterFile,
    Devices,
    Dtype,
    JsonOut,
    MaxMemory,
    Microbatches,
    ModelText,
    ModeName,
    OptimizerName,
    Output,
    Refresh,
    optimizer_of,
    whole_or_auto,
)
from autopart.units import parse_seconds

__all__ = ["plan"]


def plan(
    model: ModelText,
    devices: Devices = None,
    max_memory: MaxMemory = None,
    cluster_file: ClusterFile = None,
    mode: ModeName = "infer",
    batch: Batch = None,
    microbatches: Microbatches = "auto",
    schedule: Annotated[Literal["auto", "gpipe", "1f1b"], typer.Option(help="order of the micro-batches")] = "auto",
    optimizer: OptimizerName = None,
    dtype: Dtype = None,
    objective: Annotated[Literal["throughput", "latency"], typer.Option(help="what to make best")] = "throughput",
    stages: Annotated[str, typer.Option(metavar="auto|N", help="exactly N stages, even if fewer are faster")] = "auto",
    method: Annotated[Literal["optimal", "even", "memory-fill", "time-balanced"], typer.Option(
        help="optimal, or one of the simpler ways it is compared with"
    )] = "optimal",
    solver: Annotated[Literal["auto", "highs", "cbc"], typer.Option(help="of the integer programs")] = "auto",
    time_limit: Annotated[str, typer.Option(metavar="TIME", help="for all solver runs together: 60, 90s, 2min")] = "60",
    gap: Annotated[float, typer.Option(min=0.0, max=1.0, help="how far from the optimum is near enough")] = 1e-3,
    refresh: Refresh = False,
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Find the fastest way to spread a model over devices that fits in their memory."""
    job = {
        "mode": mode, "batch": batch, "microbatches": whole_or_auto(microbatches, "--microbatches"),
        "schedule": None if schedule == "auto" else schedule, "optimizer": optimizer_of(mode, optimizer),
        "dtype": dtype, "objective": objective, "stages": whole_or_auto(stages, "--stages"), "method": method,
        "solver": solver, "time_limit_seconds": parse_seconds(time_limit), "gap": gap,
    }
    from autopart import api
    from autopart.reporting import plan_text
    from autopart.schema.store import dump

    source = api.load_source(model, dtype=dtype)
    with progress_bar() as progress:
        found = api.plan_source(
            source, devices=devices, max_memory=tuple(max_memory or ()), cluster_file=cluster_file, refresh=refresh,
            progress=progress, **job,
        )
    write_result(found, output)
    print_result(dump(found) if json_out else plan_text(found))
