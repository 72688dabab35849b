"""``autopart plan``: the fastest way to spread a model over devices, with its proof."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from autopart.cli import limits, planoptions
from autopart.cli.console import print_result, progress_bar, write_result
from autopart.cli.loading import rare_collections
from autopart.cli.options import (
    Batch,
    ClusterFile,
    Devices,
    Dtype,
    JsonOut,
    MaxMemory,
    Microbatches,
    OptimizerName,
    OptionalModelText,
    Output,
    Refresh,
    Reserve,
    optimizer_of,
    whole_or_auto,
)
from autopart.cli.picture import Plot, check_picture, write_picture
from autopart.cli.workload import Contiguous, WorkloadFile, place_workload
from autopart.errors import UsageError
from autopart.units import parse_seconds

__all__ = ["plan"]

Advice = Annotated[bool, typer.Option(
    "--advice/--no-advice", help="say what would make the plan better, and what would change it: each is solved"
)]


def plan(
    model: OptionalModelText = None, devices: Devices = None, max_memory: MaxMemory = None,
    reserve: Reserve = None, cluster_file: ClusterFile = None, mode: planoptions.PlanMode = "infer",
    batch: Batch = None, microbatches: Microbatches = "auto",
    schedule: planoptions.ScheduleName = "auto", optimizer: OptimizerName = None,
    dtype: Dtype = None, objective: planoptions.ObjectiveName = "throughput", stages: planoptions.Stages = "auto",
    tensor_parallel: planoptions.WidestTensor = "auto", data_parallel: planoptions.WidestData = "auto",
    recompute: planoptions.RecomputeName = "never", compress: planoptions.CompressName = "none",
    stage_dtype: planoptions.StageDtypeName = "keep",
    pin: planoptions.Pins = None, forbid: planoptions.Forbidden = None, together: planoptions.Together = None,
    method: planoptions.MethodName = "optimal",
    solver: planoptions.SolverName = "auto", time_limit: planoptions.TimeLimit = "60", gap: planoptions.Gap = 1e-3,
    master_weights: planoptions.MasterWeights = False, budget: planoptions.MeasuringTime = None,
    max_step_time: limits.MaxStepTime = None, max_price: limits.MaxPrice = None, rent: limits.Rents = None,
    top: limits.Top = None, verify: planoptions.Verify = True, refresh: Refresh = False, workload: WorkloadFile = None,
    contiguous: Contiguous = None, prompt: planoptions.Prompt = None, new_tokens: planoptions.NewTokens = None,
    concurrency: planoptions.Concurrency = None, weights: planoptions.WeightsName = None,
    advice: Advice = True, plot: Plot = None, json_out: JsonOut = False, output: Output = None,
) -> None:  # fmt: skip
    """Find the fastest way to spread a model over devices that fits in their memory.

    autopart plan model.py --devices cuda:0,cuda:1 -o plan.json

    autopart plan model.py --devices 2xrtx-4090,t4 --mode train --batch 64

    autopart plan hf:config.json --dtype bfloat16 --devices 8xh100-sxm-80gb --objective latency

    autopart plan model.py --devices 2xl4,4xt4 --objective cost --max-step-time 80ms --top 3

    autopart plan hf:config.json --dtype float16 --devices 2xl4 --mode generate --prompt 2048 --concurrency 8
    """
    if workload is not None:
        return place_workload(
            workload, model=model, contiguous=contiguous, solver=solver, time_limit_seconds=parse_seconds(time_limit),
            gap=gap, json_out=json_out, output=output,
        )
    text = _model_text(model, contiguous)
    check_picture(plot)
    job = {
        "mode": mode, "batch": batch, "microbatches": whole_or_auto(microbatches, "--microbatches"),
        "schedule": None if schedule == "auto" else schedule, "optimizer": optimizer_of(mode, optimizer),
        "dtype": dtype, "objective": objective, "stages": whole_or_auto(stages, "--stages"), "method": method,
        "solver": solver, "time_limit_seconds": parse_seconds(time_limit), "gap": gap,
        "tensor_parallel": whole_or_auto(tensor_parallel, "--tensor-parallel") or 1,
        "data_parallel": whole_or_auto(data_parallel, "--data-parallel") or 1, "recompute": recompute,
        "compress": compress, "stage_dtype": stage_dtype,
        "pins": planoptions.pairs(pin, "--pin"), "forbidden": planoptions.pairs(forbid, "--forbid"),
        "max_step_seconds": None if max_step_time is None else parse_seconds(max_step_time),
        "max_usd_per_hour": None if max_price is None else limits.usd_per_hour(max_price, "--max-price"),
        "rents": limits.rents(rent), "together": planoptions.groups(together), "master_weights": master_weights,
        **planoptions.generation_words(
            mode, prompt_tokens=prompt, new_tokens=new_tokens, concurrency=concurrency, weights=weights
        ),
    }
    where = {
        "devices": devices, "max_memory": tuple(max_memory or ()), "reserve": tuple(reserve or ()),
        "cluster_file": cluster_file, "budget_seconds": None if budget is None else parse_seconds(budget),
    }
    if top is not None and mode == "generate":
        raise UsageError("--top is not for --mode generate; leave it out")
    if top is not None:
        return _plan_top(text, job, top, json_out, output, refresh=refresh, verify=verify, **where)
    _plan_model(text, job, json_out, output, refresh=refresh, verify=verify, advice=advice, plot=plot, **where)


def _model_text(model: str | None, contiguous: bool | None) -> str:
    if model is None:
        raise UsageError("Missing argument 'MODEL': give model.py, hf:DIR, ..., or --workload FILE")
    if contiguous is not None:
        raise UsageError("--contiguous and --non-contiguous are about --workload FILE; leave them out for a model")
    return model


def _plan_model(
    model: str, job: dict[str, Any], json_out: bool, output: Output, *, plot: Plot, **options: Any
) -> None:
    """Loads, plans and prints."""
    with rare_collections():
        from autopart import api, planning
        from autopart.reporting import plan_picture, plan_text
        from autopart.schema.store import dump

        source = api.load_source(model, dtype=job["dtype"], may_lack_weights=True)
    with progress_bar() as progress:
        found = api.plan_source(source, progress=progress, **options, **job)
    write_result(found, output)
    if plot is not None:
        write_picture(plan_picture(found, planning.simulate(found)), plot)
    print_result(dump(found) if json_out else plan_text(found))


def _plan_top(
    model: str, job: dict[str, Any], num_plans: int, json_out: bool, output: Output, **options: Any
) -> None:
    """Loads, plans and prints several plans; the best one is written."""
    with rare_collections():
        from autopart import api
        from autopart.reporting import top_text
        from autopart.schema.store import dump

        source = api.load_source(model, dtype=job["dtype"], may_lack_weights=True)
    with progress_bar() as progress:
        found = api.plan_top_source(source, num_plans, progress=progress, **options, **job)
    write_result(found[0].plan, output)
    print_result(f"[{', '.join(dump(each).rstrip() for each in found)}]" if json_out else top_text(found))
