"""A training in words."""

from __future__ import annotations

from autopart.reporting.tables import rate
from autopart.schema.training import Training
from autopart.units import format_seconds

__all__ = ["training_text"]


def training_text(training: Training) -> str:
    """What came of it, what it survived, and where its checkpoint is."""
    lines = [_verdict(training)]
    for each in training.recoveries:
        lines += [
            "", f"After step {each.failed_after_step}: {each.cause}.",
            f"  {each.action}; went on after step {each.resumed_from_step}.",
        ]
    if training.checkpoint:
        lines += ["", f"Checkpoint: {training.checkpoint}"]
    if training.num_skipped:
        lines += ["", f"{training.num_skipped} steps were skipped because their scaled gradients overflowed."]
    return "\n".join([*lines, *(("", *training.notes) if training.notes else ())])


def _verdict(training: Training) -> str:
    done = training.steps - training.resumed_from_step
    known = [loss for loss in training.losses if loss is not None]
    losses = f"loss {known[0]:.6g} at first, {known[-1]:.6g} at last" if known else "no loss is known"
    since = f" after {training.resumed_from_step} before" if training.resumed_from_step else ""
    return (
        f"Trained {training.model} for {done} steps{since} of {training.batch} samples: {losses}; "
        f"{format_seconds(training.median_step_seconds)} a step (predicted "
        f"{format_seconds(training.predicted_step_seconds)}), {rate(training.samples_per_second)}, "
        f"{format_seconds(training.total_seconds)} in all."
    )
