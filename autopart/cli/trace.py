"""``autopart trace``: how a model was captured, its layers with their costs, and what every cut would move."""

from __future__ import annotations

from autopart.cli.console import print_result
from autopart.cli.options import Batch, Dtype, JsonOut, ModelText, ModeName

__all__ = ["trace"]


def trace(
    model: ModelText, mode: ModeName = "infer", batch: Batch = None, dtype: Dtype = None, json_out: JsonOut = False
) -> None:
    """Show how a model was captured, its layers with parameters, FLOPs and bytes, and where it may be cut.

    autopart trace model.py --mode train --batch 8
    """
    from autopart import api
    from autopart.modelsource import with_batch
    from autopart.reporting import trace_report, trace_text
    from autopart.schema.store import dump

    source = api.load_source(model, dtype=dtype)
    if batch is not None:
        source = with_batch(source, batch)
    program = api.trace(source.model, source.args, source.kwargs, training=mode == "train", name=source.name)
    report = trace_report(program.graph)
    print_result(dump(report) if json_out else trace_text(report))
