"""A plan as ``torch.distributed.pipelining.pipeline`` takes it: where stages begin."""

from __future__ import annotations

import json
from itertools import pairwise

from autopart.errors import UsageError
from autopart.schema.plan import Plan

__all__ = ["to_torch"]

_SCHEDULES = {
    "gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B", "interleaved": "ScheduleInterleaved1F1B",
    "zero-bubble": "ScheduleInterleavedZeroBubble", "looped-bfs": "ScheduleLoopedBFS",
}


def to_torch(plan: Plan) -> str:
    """JSON with ``split_spec`` (module: "beginning"), and what goes to ``pipeline`` and the schedule beside it.

    A stage begins at the outermost module that none of the stages before has entered.  In Python:
    ``{name: SplitPoint.BEGINNING for name in document["split_spec"]}``.

    Raises:
        UsageError: a stage begins at something that is not the first call of a module.
    """
    beginnings = []
    entered: tuple[str, ...] = ()
    for before, after in pairwise(plan.stages):
        entered += before.layers
        beginnings.append(_beginning(entered, after.layers[0]))
    document = {
        "split_spec": dict.fromkeys(beginnings, "beginning"),
        "num_stages": len(plan.stages),
        "num_microbatches": plan.schedule.num_microbatches,
        "schedule": _SCHEDULES[plan.schedule.name],
        "devices": [stage.devices[0] for stage in plan.stages],
    }
    return json.dumps(document, indent=2) + "\n"


def _beginning(entered: tuple[str, ...], layer: str) -> str:
    if "@" in layer:
        raise UsageError(
            f"split_spec cannot begin a stage at {layer}, a later call of one module; run the plan with autopart"
        )
    pieces = layer.split(".")
    prefixes = (".".join(pieces[:depth]) for depth in range(1, len(pieces) + 1))
    return next(
        (prefix for prefix in prefixes if not any(f"{name}.".startswith(f"{prefix}.") for name in entered)), layer
    )
