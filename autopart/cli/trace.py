"""``autopart trace``: a model's layers with their parameters, FLOPs and bytes."""

from __future__ import annotations

from autopart.cli.console import print_result
from autopart.cli.options import Batch, Dtype, JsonOut, ModelText, ModeName

__all__ = ["trace"]


def trace(
    model: ModelText, mode: ModeName = "infer", batch: Batch = None, dtype: Dtype = None, json_out: JsonOut = False
) -> None:
    """Show a model's layers: parameters, FLOPs, bytes, and where it may be cut."""
    from autopart import api
    from autopart.modelsource import with_batch
    from autopart.reporting import trace_text
    from autopart.schema.store import dump

    source = api.load_source(model, dtype=dtype)
    if batch is not None:
        source = with_batch(source, batch)
    program = api.trace(source.model, source.args, source.kwargs, training=mode == "train", name=source.name)
    print_result(dump(program.graph) if json_out else trace_text(program.graph))
