"""``autopart profile``: the time of every layer on every kind of device."""

from __future__ import annotations

from typing import Annotated

import typer

from autopart.cli.console import print_result, progress_bar, write_result
from autopart.cli.options import (
    Batch,
    ClusterFile,
    Devices,
    Dtype,
    JsonOut,
    MaxMemory,
    ModelText,
    ModeName,
    OptimizerName,
    Output,
    Refresh,
    optimizer_of,
)

__all__ = ["profile"]


def profile(
    model: ModelText,
    devices: Devices = None,
    max_memory: MaxMemory = None,
    cluster_file: ClusterFile = None,
    mode: ModeName = "infer",
    batch: Batch = None,
    optimizer: OptimizerName = None,
    dtype: Dtype = None,
    refresh: Refresh = False,
    budget: Annotated[str | None, typer.Option(
        "--budget", metavar="TIME", help="time for measuring, 60s: the most important layers first, the rest estimated"
    )] = None,
    json_out: JsonOut = False,
    output: Output = None,
) -> None:
    """Measure every layer on the devices that are here, and estimate it on those that are not.

    autopart profile model.py --devices cpu,t4 --batch 8
    """
    from autopart import api
    from autopart.modelsource import with_batch
    from autopart.reporting import profile_text
    from autopart.schema.store import dump
    from autopart.units import parse_seconds

    optimizer_name = optimizer_of(mode, optimizer)
    source = api.load_source(model, dtype=dtype)
    if batch is not None:
        source = with_batch(source, batch)
    with progress_bar() as progress:
        found = api.profile_source(
            source, devices=devices, max_memory=tuple(max_memory or ()), cluster_file=cluster_file, refresh=refresh,
            progress=progress, mode=mode, optimizer=optimizer_name,
            budget_seconds=None if budget is None else parse_seconds(budget),
        )
    write_result(found, output)
    if json_out:
        print_result(dump(found))
        return
    program = api.trace(source.model, source.args, source.kwargs, training=found.training, name=source.name)
    print_result(profile_text(found, program.graph))
