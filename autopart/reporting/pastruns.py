"""How the stages of a plan ran, in words, beside what was predicted."""

from __future__ import annotations

from collections.abc import Sequence

from autopart.pastruns import StageRun
from autopart.reporting.tables import heading, layer_range, percent, table
from autopart.schema.plan import Plan
from autopart.units import format_seconds

__all__ = ["past_runs_text"]

NUM_WORST = 5
"""layers that are shown"""


def past_runs_text(plan: Plan, runs: Sequence[StageRun | None]) -> str:
    """The stages that ran and their layers, those furthest off first; empty if none did.

    Args:
        plan: whose stages they are.
        runs: one for each stage, or None.
    """
    known = [(stage, run) for stage, run in zip(plan.stages, runs, strict=True) if run is not None]
    known.sort(key=lambda pair: -abs(pair[1].ratio - 1))
    rows = [
        (
            str(stage.index), run.kind, layer_range(stage.layers), str(run.num_runs),
            _both(run.predicted_forward_seconds, run.forward_seconds),
            _both(run.predicted_backward_seconds, run.backward_seconds),
            percent(run.ratio - 1, signed=True),
        )
        for stage, run in known
    ]  # fmt: skip
    if not rows:
        return ""
    headers = ("stage", "kind", "layers", "runs", "forward", "backward", "measured is")
    title = "As it ran here, predicted / measured, the stages furthest off first (a micro-batch, the kind's full speed)"
    worst = _worst_layers([run for _, run in known])
    return "\n\n".join(filter(None, (heading(title, table(headers, rows, words=(0, 1, 2))), worst)))


def _worst_layers(runs: Sequence[StageRun]) -> str:
    """The layers whose forward is furthest off in seconds: what they add to a stage is what matters."""
    layers = [
        (abs(measured - predicted), name, run.kind, predicted, measured)
        for run in runs if len(run.predicted_layer_seconds) == len(run.layer_seconds)
        for name, predicted, measured in zip(run.layers, run.predicted_layer_seconds, run.layer_seconds, strict=False)
    ]  # fmt: skip
    layers.sort(key=lambda row: -row[0])
    rows = [
        (name, kind, _both(predicted, measured), percent(measured / predicted - 1, signed=True) if predicted else "")
        for _, name, kind, predicted, measured in layers[:NUM_WORST]
    ]
    title = f"The {len(rows)} layers furthest off, forward, predicted / measured (timed one by one after the steps)"
    return heading(title, table(("layer", "kind", "forward", "measured is"), rows, words=(0, 1))) if rows else ""


def _both(predicted: float, measured: float) -> str:
    return f"{format_seconds(predicted)} / {format_seconds(measured)}"
