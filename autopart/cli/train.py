"""``autopart train``: a training by a plan, one process per device, that may go on after failures."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import note, print_result, progress_bar, write_result
from autopart.cli.options import JsonOut, ModelText, Output, PlanFile, Prefetch, whole_or_auto
from autopart.errors import UsageError
from autopart.progress import silent

__all__ = ["train"]

Data = Annotated[str, typer.Option(
    "--data", help="file.py:function or package.module:function that gives tensors, a dataset or batches; .npy files "
    "with commas between, one .npz or one .pt"
)]
Steps = Annotated[int, typer.Option("--steps", min=1, help="updates of the weights, in all")]
OptimizerName = Annotated[Literal["adamw", "adam", "momentum", "sgd"] | None, typer.Option(
    "--optimizer", help="default: the plan's"
)]
WeightDecay = Annotated[float | None, typer.Option("--weight-decay", help="default: the optimizer's own")]
Rate = Annotated[float | None, typer.Option("--lr", help="learning rate; default: the optimizer's own")]
Clip = Annotated[float | None, typer.Option("--clip", help="the most that the norm of all gradients may be")]
Precision = Annotated[Literal["full", "bf16", "fp16"], typer.Option(
    "--precision", help="what is computed in: the model's types, or autocast; fp16 with a scaled loss"
)]
RateSchedule = Annotated[Literal["constant", "linear", "cosine"], typer.Option(
    "--lr-schedule", help="how the rate falls after the warm-up"
)]
WarmUp = Annotated[int, typer.Option("--lr-warmup", min=0, help="steps in which the rate grows from 0")]
Floor = Annotated[float, typer.Option("--lr-floor", help="what the rate falls to, as a share of it")]
CompressGradients = Annotated[Literal["none", "fp16", "bf16"], typer.Option(
    "--compress-gradients", help="what the gradients of data-parallel replicas travel as"
)]
Shuffle = Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="a new order in every epoch")]
Seed = Annotated[int, typer.Option("--seed", help="of weights, order and dropout")]
Accumulate = Annotated[int, typer.Option("--accumulate", min=1, help="batches of the plan per step")]
Checkpoints = Annotated[Path | None, typer.Option("--checkpoints", metavar="DIR", help="where checkpoints go")]
CheckpointEvery = Annotated[int, typer.Option("--checkpoint-every", min=1, help="steps")]
Keep = Annotated[int, typer.Option("--keep", min=1, help="checkpoints that are kept, the latest")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the latest checkpoint, if there is one")]
Metrics = Annotated[Path | None, typer.Option(
    "--metrics", metavar="FILE", help="one JSON object per step; default: metrics.jsonl beside the checkpoints"
)]
Elastic = Annotated[bool, typer.Option(
    "--elastic/--no-elastic", help="after a failure plan for what is left, and go on from the latest checkpoint"
)]
MostRecoveries = Annotated[int, typer.Option("--most-recoveries", min=0, help="elastic: then stop")]
Returns = Annotated[int, typer.Option(
    "--returns", min=0, help="elastic: how often a device whose process died is tried again before it is left out"
)]
HangTimeout = Annotated[str, typer.Option(
    "--hang-timeout", metavar="TIME", help="how long a step may take; the first four times that"
)]


def train(
    plan_file: PlanFile,
    model: ModelText,
    data: Data,
    steps: Steps,
    optimizer: OptimizerName = None,
    lr: Rate = None,
    weight_decay: WeightDecay = None,
    lr_schedule: RateSchedule = "constant",
    lr_warmup: WarmUp = 0,
    lr_floor: Floor = 0.0,
    clip: Clip = None,
    precision: Precision = "full",
    accumulate: Accumulate = 1,
    compress_gradients: CompressGradients = "none",
    prefetch: Prefetch = "auto",
    shuffle: Shuffle = True,
    seed: Seed = 0,
    checkpoints: Checkpoints = None,
    checkpoint_every: CheckpointEvery = 100,
    keep: Keep = 2,
    resume: Resume = False,
    metrics: Metrics = None,
    elastic: Elastic = False,
    returns: Returns = 0,
    most_recoveries: MostRecoveries = 10,
    hang_timeout: HangTimeout = "30s",
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Train a model by a plan, one process per device; checkpoints load into any other plan and the plain model.

    autopart train plan.json model.py --data data.npz --steps 100 --checkpoints runs/one
    """
    from autopart.schema.store import dump, load_plan
    from autopart.units import parse_seconds

    plan = load_plan(plan_file)
    if optimizer is None and plan.job.optimizer == "none":
        raise UsageError(f"{plan_file} is planned without an optimizer; give --optimizer, or plan with --mode train")
    if optimizer not in (None, plan.job.optimizer):
        note(f"autopart: warning: the plan's memory is for {plan.job.optimizer}, not for {optimizer}")
    from autopart import api
    from autopart.reporting import training_text

    is_first = os.environ.get("RANK", "0") == "0"  # under torchrun one rank speaks for all
    with progress_bar() if is_first else nullcontext(silent) as progress:
        trained = api.train_source(
            plan, model, data, optimizer=optimizer or plan.job.optimizer, steps=steps, learning_rate=lr,
            weight_decay=weight_decay, lr_schedule=lr_schedule, lr_warmup=lr_warmup, lr_floor=lr_floor, clip=clip,
            precision=precision, accumulate=accumulate, compress_gradients=compress_gradients,
            prefetch=whole_or_auto(prefetch, "--prefetch", least=0), shuffle=shuffle, seed=seed,
            checkpoints=checkpoints, checkpoint_every=checkpoint_every, keep=keep, resume=resume, metrics=metrics,
            elastic=elastic, returns=returns, most_recoveries=most_recoveries, hang_seconds=parse_seconds(hang_timeout),
            progress=progress, told=lambda line: note(f"autopart: {line}"),
        )  # fmt: skip
    if not is_first:
        return
    write_result(trained, output)
    print_result(dump(trained) if json_out else training_text(trained))
