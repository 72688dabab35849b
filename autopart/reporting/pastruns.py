"""How the stages of a plan ran, in words, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

from autopart.pastruns import StageRun
from autopart.reporting.tables import heading, layer_range, percent, table
from autopart.schema.plan import Plan
from autopart.units import format_seconds

__all__ = ["past_runs_text"]


def past_runs_text(plan: Plan, runs: Sequence[StageRun | None]) -> str:
    """The stages that ran, the layers furthest off first; empty if none did.

    Args:
        plan: whose stages they are.
        runs: one for each stage, or None.
    """
    known = [(stage, run) for stage, run in zip(plan.stages, runs, strict=True) if run is not None]
    known.sort(key=lambda pair: -abs(pair[1].ratio - 1))
    rows = [
        (
            str(stage.index), run.kind, layer_range(stage.layers),
            f"{format_seconds(run.predicted_forward_seconds)} / {format_seconds(run.forward_seconds)}",
            f"{format_seconds(run.predicted_backward_seconds)} / {format_seconds(run.backward_seconds)}",
            percent(run.ratio - 1, signed=True),
        )
        for stage, run in known
    ]  # fmt: skip
    headers = ("stage", "kind", "layers", "forward", "backward", "measured is")
    title = "As it ran here, predicted / measured, the layers furthest off first (a micro-batch, the kind's full speed)"
    return heading(title, table(headers, rows, words=(0, 1, 2))) if rows else ""
