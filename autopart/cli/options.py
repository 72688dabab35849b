"""The options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.outputs import writable
from autopart.errors import UsageError
from autopart.schema.job import usual_optimizer

__all__ = [
    "Batch",
    "ClusterFile",
    "Devices",
    "Dtype",
    "JsonOut",
    "MaxMemory",
    "Microbatches",
    "ModeName",
    "ModelText",
    "OptimizerName",
    "OptionalModelText",
    "Output",
    "PlanFile",
    "Prefetch",
    "Refresh",
    "Reserve",
    "optimizer_of",
    "whole_or_auto",
]


def whole_or_auto(text: str, option: str, *, least: int = 1) -> int | None:
    """The number in ``text``, the value of ``option``; None for ``auto``.

    Raises:
        UsageError: it is neither.
    """
    if text == "auto":
        return None
    try:
        number = int(text)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is neither auto nor a whole number; give auto or {least} or more"
        ) from None
    if number < least:
        raise UsageError(f"{option} {number} is below {least}; give auto or {least} or more")
    return number


def optimizer_of(mode: str, optimizer: str | None) -> str:
    """The optimizer of a job: what was asked for, else adamw for training and none for inference.

    Raises:
        UsageError: an optimizer was asked for and there is no training.
    """
    if mode != "train" and optimizer not in (None, "none"):
        raise UsageError(f"--optimizer {optimizer} has no use in inference; add --mode train, or leave it out")
    return optimizer or usual_optimizer(mode)


ModelText = Annotated[str, typer.Argument(
    metavar="MODEL", help="model.py[:name], package.module:name, hf:DIR, torchvision:NAME or timm:NAME"
)]
OptionalModelText = Annotated[str | None, typer.Argument(
    metavar="[MODEL]", help="model.py[:name], package.module:name, hf:DIR, torchvision:NAME or timm:NAME"
)]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan file, as `autopart plan -o` writes it")]
Prefetch = Annotated[str, typer.Option(
    "--prefetch", metavar="auto|N", help="computations that a receive is posted before it is needed (processors only); "
    "auto: as the plan says, or as many as can be and a deeper warm-up, where the plan's links make that pay"
)]
Devices = Annotated[str | None, typer.Option(
    "--devices", "-d", help="comma list: cuda:0,cuda:1 · cpu · cpu:0,cpu:1@0.5 · 2xh100-sxm-80gb,4xt4 · auto (default)"
)]
MaxMemory = Annotated[list[str] | None, typer.Option(
    "--max-memory", metavar="DEVICE=SIZE", help="cap of a device or kind, cuda:0=20GiB; comma list, may come again"
)]
Reserve = Annotated[list[str] | None, typer.Option(
    "--reserve", metavar="DEVICE=SIZE", help="memory left to others, cuda:0=3GiB; comma list, may come again"
)]
ClusterFile = Annotated[Path | None, typer.Option("--cluster", metavar="FILE", help="devices and links as YAML")]
ModeName = Annotated[Literal["infer", "train"], typer.Option("--mode", help="what the model is for")]
Batch = Annotated[int | None, typer.Option(
    "--batch", min=1, help="samples of one step; default: those of example_inputs()"
)]
Microbatches = Annotated[str, typer.Option("--microbatches", metavar="auto|N", help="parts of a batch")]
OptimizerName = Annotated[Literal["adamw", "adam", "momentum", "sgd", "none"] | None, typer.Option(
    "--optimizer", help="of training; default adamw"
)]
Dtype = Annotated[str | None, typer.Option(
    "--dtype", help="cast the model and its inputs: float32, bfloat16, float16, float64; default: as built"
)]
Refresh = Annotated[bool, typer.Option("--refresh", help="measure again what is in the cache")]
JsonOut = Annotated[bool, typer.Option("--json", help="print one JSON document and nothing else")]
Output = Annotated[Path | None, typer.Option(
    "--output", "-o", metavar="FILE", callback=writable, help="write the result as JSON"
)]
