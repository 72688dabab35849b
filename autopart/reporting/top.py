"""The best plans side by side, and what each trades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autopart.reporting.plans import plan_text
from autopart.reporting.tables import heading, table
from autopart.schema.alternatives import Alternative
from autopart.schema.plan import Plan
from autopart.units import format_seconds

__all__ = ["top_text"]


def top_text(alternatives: Sequence[Alternative]) -> str:
    """The best plan in full, then a table of all: devices in use, stages, step, and what is given up and saved."""
    rows = [
        (str(place), _devices(each.plan), str(len(each.plan.stages)),
         f"{each.plan.schedule.num_microbatches}, {each.plan.schedule.name}",
         format_seconds(each.plan.prediction.step_seconds), each.trade + _failed(each.plan))
        for place, each in enumerate(alternatives, start=1)
    ]
    found = table(("plan", "devices", "stages", "micro-batches", "step", "what it trades"), rows, words=(0, 1, 3, 5))
    title = f"The {len(rows)} best really different plans" if len(rows) > 1 else "There is no really different plan"
    return plan_text(alternatives[0].plan) + "\n" + heading(title, found) + "\n"


def _devices(plan: Plan) -> str:
    """In use, by kind: 2x t4, l4."""
    counts = Counter(plan.cluster.device(name).kind for stage in plan.stages for name in stage.devices)
    return ", ".join(kind if number == 1 else f"{number}x {kind}" for kind, number in counts.items())


def _failed(plan: Plan) -> str:
    return "".join(f"; its check failed: {each.detail}" for each in plan.checks if each.outcome == "failed")
