"""The options of ``autopart plan``, beyond those that other commands have too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from autopart.errors import UsageError

__all__ = [
    "CompressName", "Concurrency", "Forbidden", "Gap", "MasterWeights", "MeasuringTime", "MethodName", "NewTokens",
    "ObjectiveName", "Pins", "PlanMode", "Prompt", "RecomputeName", "ScheduleName", "SolverName", "Stages",
    "TimeLimit", "Together", "Verify", "WeightsName", "WidestData", "WidestTensor", "generation_words", "groups",
    "pairs",
]  # fmt: skip

ScheduleName = Annotated[Literal["auto", "gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble"], typer.Option(
    "--schedule", help="order of the micro-batches"
)]
ObjectiveName = Annotated[Literal["throughput", "latency", "cost", "memory", "devices"], typer.Option(
    "--objective", help="least time of a step, of one request; least rent of a step; least share of a device's memory; "
    "fewest devices"
)]
Stages = Annotated[str, typer.Option("--stages", metavar="auto|N", help="exactly N stages, even if fewer are faster")]
WidestTensor = Annotated[str, typer.Option(
    "--tensor-parallel", metavar="auto|N",
    help="at most N devices share every layer of a stage; auto: 1",
)]
WidestData = Annotated[str, typer.Option(
    "--data-parallel", metavar="auto|N",
    help="at most N replicas of a stage share a micro-batch; auto: 1",
)]
RecomputeName = Annotated[Literal["auto", "never", "always"], typer.Option(
    "--recompute", help="run layers again in the backward instead of keeping what they save"
)]
CompressName = Annotated[Literal["none", "auto", "fp16", "bf16", "int8", "topk"], typer.Option(
    "--compress", help="encode what crosses from device to device; auto: fp16 or int8 where that is quicker; all but "
    "none change results a little"
)]
StageDtypeName = Annotated[Literal["keep", "auto"], typer.Option(
    "--stage-dtype", help="what stages compute in on a kind without units for the model's half type; auto: float16 in "
    "inference, float32 in training; changes results a little"
)]
Pins = Annotated[list[str] | None, typer.Option(
    "--pin", metavar="LAYER=DEVICE", help="the layer, or all under that name, runs on that device; may come again"
)]
Forbidden = Annotated[list[str] | None, typer.Option(
    "--forbid", metavar="LAYER=DEVICE", help="the layer does not run on that device; may come again"
)]
Together = Annotated[list[str] | None, typer.Option(
    "--together", metavar="A,B", help="these layers run in one stage; may come again"
)]
MethodName = Annotated[Literal[
    "optimal", "even", "parameters", "memory-fill", "balanced-bytes", "time-balanced", "speed-proportional", "greedy",
    "chain-dp",
], typer.Option("--method", help="optimal, or one of the simpler ways it is compared with")]
SolverName = Annotated[Literal["auto", "highs", "cbc"], typer.Option("--solver", help="of the integer programs")]
TimeLimit = Annotated[str, typer.Option(
    "--time-limit", metavar="TIME", help="for all solver runs together: 60, 90s, 2min"
)]
Gap = Annotated[float, typer.Option("--gap", min=0.0, max=1.0, help="how far from the optimum is near enough")]
MasterWeights = Annotated[bool, typer.Option(
    "--master-weights", help="the optimizer keeps float32 copies of narrower weights (cannot be run yet)"
)]
MeasuringTime = Annotated[str | None, typer.Option(
    "--budget", metavar="TIME", help="time for measuring, 60s: the most important layers first, the rest estimated"
)]
PlanMode = Annotated[Literal["infer", "train", "generate"], typer.Option(
    "--mode", help="what the model is for; generate: text, token by token (hf:DIR)"
)]
Prompt = Annotated[int | None, typer.Option("--prompt", min=1, help="tokens of a prompt, of --mode generate: 2048")]
NewTokens = Annotated[int | None, typer.Option("--new-tokens", min=1, help="tokens of an answer: 256")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", min=1, help="requests that are served at once: 1")]
WeightsName = Annotated[Literal["as-built", "int8", "int4"] | None, typer.Option(
    "--weights", help="how --mode generate keeps the weights of products"
)]
Verify = Annotated[bool, typer.Option("--verify/--no-verify", help="compare the plan's split with the unsplit model")]


def pairs(texts: Sequence[str] | None, option: str) -> tuple[tuple[str, str], ...]:
    """LAYER=DEVICE as pairs.

    Raises:
        UsageError: a text has no equals sign.
    """
    found = []
    for text in texts or ():
        layer, sign, device = text.rpartition("=")
        if not sign:
            raise UsageError(f"{option} {text!r} is not LAYER=DEVICE; give for example {option} lm_head=cuda:1")
        found.append((layer, device))
    return tuple(found)


def groups(texts: Sequence[str] | None) -> tuple[tuple[str, ...], ...]:
    """Comma lists as tuples."""
    return tuple(tuple(text.split(",")) for text in texts or ())


def generation_words(mode: str, **words: object) -> dict[str, object]:
    """The words of --mode generate, those that were not given left out.

    Raises:
        UsageError: one was given for another mode.
    """
    given = {name: value for name, value in words.items() if value is not None}
    if given and mode != "generate":
        names = ", ".join(f"--{name.removesuffix('_tokens') if name == 'prompt_tokens' else name}" for name in given)
        raise UsageError(f"{names.replace('_', '-')} is about generating text; add --mode generate, or leave it out")
    return given
