"""What came of a training, from the records of its steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from autopart.schema.plan import Plan
from autopart.schema.training import Recipe, Recovery, StepRecord, Training

__all__ = ["result_of"]


def result_of(
    plan: Plan, recipe: Recipe, records: Sequence[StepRecord], *, resumed_from_step: int, total_seconds: float,
    checkpoint: Path | None, notes: Sequence[str] = (), versions: Sequence[str] = (),
    recoveries: Sequence[Recovery] = (),
) -> Training:  # fmt: skip
    """The steps of this training as one result.

    Args:
        plan: that was used last.
        recipe: how it was trained.
        records: of the steps after ``resumed_from_step``, each once.
        resumed_from_step: where it began; 0: at the beginning.
        total_seconds: of everything.
        checkpoint: the latest.
        notes: what the user should know.
        versions: what the figures depend on.
        recoveries: from failures.
    """
    median_seconds = statistics.median(record.seconds for record in records) if records else 0.0
    samples = plan.job.batch * recipe.accumulate
    return Training(
        model=plan.model.name, steps=recipe.steps, batch=samples, resumed_from_step=resumed_from_step,
        losses=tuple(record.loss for record in records), median_step_seconds=median_seconds,
        predicted_step_seconds=plan.prediction.step_seconds * recipe.accumulate,
        samples_per_second=samples / median_seconds if median_seconds else 0.0, total_seconds=total_seconds,
        num_skipped=sum(record.skipped for record in records), checkpoint=str(checkpoint) if checkpoint else None,
        recoveries=tuple(recoveries), notes=tuple(notes), versions=tuple(versions),
    )  # fmt: skip
