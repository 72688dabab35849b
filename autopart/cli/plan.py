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
    ModeName,
    OptimizerName,
    OptionalModelText,
    Output,
    Refresh,
    optimizer_of,
    whole_or_auto,
)
from autopart.cli.workload import Contiguous, WorkloadFile, place_workload
from autopart.errors import UsageError
from autopart.units import parse_seconds

__all__ = ["plan"]


def plan(
    model: OptionalModelText = None,
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
    tensor_parallel: Annotated[str, typer.Option(
        metavar="auto|N", help="at most N devices share every layer of a stage; auto: 1 (such plans cannot be run yet)"
    )] = "auto",
    data_parallel: Annotated[str, typer.Option(
        metavar="auto|N", help="at most N replicas of a stage share a micro-batch; auto: 1 (cannot be run yet)"
    )] = "auto",
    recompute: Annotated[Literal["auto", "never", "always"], typer.Option(
        help="run forwards again in the backward; only never can be run yet"
    )] = "never",
    pin: Annotated[list[str] | None, typer.Option(
        metavar="LAYER=DEVICE", help="the layer, or all under that name, runs on that device; may come again"
    )] = None,
    forbid: Annotated[list[str] | None, typer.Option(
        metavar="LAYER=DEVICE", help="the layer does not run on that device; may come again"
    )] = None,
    together: Annotated[list[str] | None, typer.Option(
        metavar="A,B", help="these layers run in one stage; may come again"
    )] = None,
    method: Annotated[Literal[
        "optimal", "even", "parameters", "memory-fill", "balanced-bytes", "time-balanced", "speed-proportional",
        "greedy", "chain-dp",
    ], typer.Option(
        help="optimal, or one of the simpler ways it is compared with"
    )] = "optimal",
    solver: Annotated[Literal["auto", "highs", "cbc"], typer.Option(help="of the integer programs")] = "auto",
    time_limit: Annotated[str, typer.Option(metavar="TIME", help="for all solver runs together: 60, 90s, 2min")] = "60",
    gap: Annotated[float, typer.Option(min=0.0, max=1.0, help="how far from the optimum is near enough")] = 1e-3,
    verify: Annotated[bool, typer.Option(
        "--verify/--no-verify", help="compare the plan's split with the unsplit model"
    )] = True,
    refresh: Refresh = False,
    workload: WorkloadFile = None,
    contiguous: Contiguous = None,
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Find the fastest way to spread a model over devices that fits in their memory."""
    if workload is not None:
        return place_workload(
            workload, model=model, contiguous=contiguous, solver=solver, time_limit_seconds=parse_seconds(time_limit),
            gap=gap, json_out=json_out, output=output,
        )
    if model is None:
        raise UsageError("Missing argument 'MODEL': give model.py, hf:DIR, ..., or --workload FILE")
    if contiguous is not None:
        raise UsageError("--contiguous and --non-contiguous are about --workload FILE; leave them out for a model")
    job = {
        "mode": mode, "batch": batch, "microbatches": whole_or_auto(microbatches, "--microbatches"),
        "schedule": None if schedule == "auto" else schedule, "optimizer": optimizer_of(mode, optimizer),
        "dtype": dtype, "objective": objective, "stages": whole_or_auto(stages, "--stages"), "method": method,
        "solver": solver, "time_limit_seconds": parse_seconds(time_limit), "gap": gap,
        "tensor_parallel": whole_or_auto(tensor_parallel, "--tensor-parallel") or 1,
        "data_parallel": whole_or_auto(data_parallel, "--data-parallel") or 1, "recompute": recompute,
        "pins": _pairs(pin, "--pin"), "forbidden": _pairs(forbid, "--forbid"),
        "together": tuple(tuple(text.split(",")) for text in together or ()),
    }
    from autopart import api
    from autopart.reporting import plan_text
    from autopart.schema.store import dump

    source = api.load_source(model, dtype=dtype)
    with progress_bar() as progress:
        found = api.plan_source(
            source, devices=devices, max_memory=tuple(max_memory or ()), cluster_file=cluster_file, refresh=refresh,
            verify=verify, progress=progress, **job,
        )
    write_result(found, output)
    print_result(dump(found) if json_out else plan_text(found))


def _pairs(texts: list[str] | None, option: str) -> tuple[tuple[str, str], ...]:
    """LAYER=DEVICE as pairs.

    Raises:
        UsageError: a text has no equals sign.
    """
    pairs = []
    for text in texts or ():
        layer, sign, device = text.rpartition("=")
        if not sign:
            raise UsageError(f"{option} {text!r} is not LAYER=DEVICE; give for example {option} lm_head=cuda:1")
        pairs.append((layer, device))
    return tuple(pairs)
