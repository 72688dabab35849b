"""A plan as a table of comma-separated values: one row per layer."""

from __future__ import annotations

import csv
import io

from autopart.schema.plan import Plan

__all__ = ["to_csv"]


def to_csv(plan: Plan) -> str:
    """Rows of layer, name, stage, device, in execution order, under a header."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("layer", "name", "stage", "device"))
    placed = ((name, stage) for stage in plan.stages for name in stage.layers)
    for index, (name, stage) in enumerate(placed):
        writer.writerow((index, name, stage.index, "+".join(stage.devices)))
    return buffer.getvalue()
