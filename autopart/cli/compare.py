"""``autopart compare``: several sets of devices side by side."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autopart.cli.console import print_result, progress_bar, write_result
from autopart.cli.limits import Rents, rents
from autopart.cli.options import (
    Batch,
    Dtype,
    JsonOut,
    MaxMemory,
    Microbatches,
    ModelText,
    OptimizerName,
    Output,
    Refresh,
    optimizer_of,
    whole_or_auto,
)
from autopart.cli.picture import Plot, check_picture, write_picture
from autopart.cli.planoptions import Concurrency, NewTokens, PlanMode, Prompt, WeightsName, generation_words
from autopart.units import parse_seconds

if TYPE_CHECKING:
    from autopart.schema.comparison import Comparison

__all__ = ["compare"]


def compare(
    model: ModelText,
    devices: Annotated[list[str] | None, typer.Option(
        "--devices", "-d", help="a set: comma list as for plan, or a cluster.yaml; again for the next: -d 1xl4 -d 2xl4"
    )] = None,
    catalogue: Annotated[str, typer.Option(
        metavar="'budget N $/h'", help="sets of rented kinds within that budget, up to 8 devices of at most 2 kinds"
    )] = "",
    sets: Annotated[int, typer.Option(min=1, help="how many sets of the catalogue to plan")] = 24,
    max_memory: MaxMemory = None,
    mode: PlanMode = "infer",
    batch: Batch = None,
    microbatches: Microbatches = "auto",
    optimizer: OptimizerName = None,
    dtype: Dtype = None,
    objective: Annotated[Literal["throughput", "latency"], typer.Option(help="what to make best")] = "throughput",
    time_limit: Annotated[str, typer.Option(metavar="TIME", help="of the solver for one set")] = "10",
    prompt: Prompt = None,
    new_tokens: NewTokens = None,
    concurrency: Concurrency = None,
    weights: WeightsName = None,
    refresh: Refresh = False,
    rent: Rents = None,
    form: Annotated[Literal["auto", "text", "markdown", "csv", "tsv"], typer.Option(
        "--format", help="of what is printed; auto: text in a terminal, tab-separated where nobody looks"
    )] = "auto",
    plot: Plot = None,
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Compare sets of devices: speed, latency, price, free memory, and what each device adds.

    autopart compare model.py -d 1xl4 -d 2xl4 -d 1xl4,1xt4

    autopart compare hf:config.json --dtype float16 --catalogue 'budget 2 $/h'

    autopart compare hf:config.json --dtype float16 -d 2xl4 -d a100-sxm-80gb --mode generate --concurrency 8
    """
    from autopart import api
    from autopart.comparing import compare_source
    from autopart.reporting import comparison_picture
    from autopart.schema.store import dump

    check_picture(plot)
    words = {
        "mode": mode, "batch": batch, "microbatches": whole_or_auto(microbatches, "--microbatches"),
        "optimizer": optimizer_of(mode, optimizer), "dtype": dtype, "objective": objective,
        "time_limit_seconds": parse_seconds(time_limit), "rents": rents(rent),
        **generation_words(
            mode, prompt_tokens=prompt, new_tokens=new_tokens, concurrency=concurrency, weights=weights
        ),
    }
    source = api.load_source(model, dtype=dtype)
    with progress_bar() as progress:
        found = compare_source(
            source, tuple(devices or ()), catalogue=catalogue, most_sets=sets, max_memory=tuple(max_memory or ()),
            refresh=refresh, progress=progress, **words,
        )
    write_result(found, output)
    if plot is not None:
        write_picture(comparison_picture(found), plot)
    print_result(dump(found) if json_out else _written(found, form))


def _written(found: Comparison, form: str) -> str:
    """The comparison in the form asked for; auto: for people in a terminal, for programs in a pipe."""
    from autopart.reporting import comparison_csv, comparison_markdown, comparison_text

    forms: dict[str, Callable[[Comparison], str]] = {
        "text": comparison_text, "markdown": comparison_markdown, "csv": comparison_csv,
        "tsv": functools.partial(comparison_csv, delimiter="\t"),
    }
    return forms[("text" if sys.stdout.isatty() else "tsv") if form == "auto" else form](found)
