"""Watching the ranks of a training from outside: how far they are, whether they stand still, whether one is slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from autopart.errors import RankError
from autopart.progress import Progress
from autopart.schema.training import StepRecord
from autopart.training.metrics import Tail
from autopart.training.records import TrainSpec, phase_path
from autopart.training.stacks import Standing, ask, blamed

__all__ = ["START_SECONDS", "Watch"]

START_SECONDS = 600.0
"""for loading and tracing the model, and for writing a checkpoint: longer than that, and the ranks stand still"""
_FIRST_STEP_FACTOR = 4
_LONG_STEP_FACTOR = 10


class Watch:
    """To be called some times a second while the ranks of a training run.

    Args:
        spec: what the ranks do.
        hang_seconds: how long a step may take; four times that for the first, and for all ten times the longest.
        progress: told of every step.
        noted: called with the record of every step.
        clock: seconds.
        ask_ranks: asks where they are.
    """

    def __init__(
        self, spec: TrainSpec, *, hang_seconds: float, progress: Progress,
        noted: Callable[[StepRecord], None] = lambda _: None, clock: Callable[[], float] = time.monotonic,
        ask_ranks: Callable[[str, int], tuple[Standing, ...]] = ask,
    ) -> None:  # fmt: skip
        self._spec, self._hang_seconds, self._progress, self._noted = spec, hang_seconds, progress, noted
        self._clock, self._ask, self._tail = clock, ask_ranks, Tail(Path(spec.metrics))
        self._phase, self._since_seconds, self._longest_seconds = "", clock(), 0.0

    def __call__(self) -> None:
        """Looks once.

        Raises:
            RankError: the ranks stand still.
        """
        for record in self._tail.new():
            self._longest_seconds = max(self._longest_seconds, record.seconds)
            self._since_seconds = self._clock()
            self._progress("training", record.step, self._spec.recipe.steps)
            self._noted(record)
        path = phase_path(self._spec.directory)
        phase = path.read_text() if path.exists() else ""
        if phase != self._phase:
            self._phase, self._since_seconds = phase, self._clock()
        still_seconds = self._clock() - self._since_seconds
        if still_seconds > self._limit_seconds:
            raise self._hung(still_seconds)

    @property
    def _limit_seconds(self) -> float:
        if not self._phase.startswith("step"):
            return max(START_SECONDS, self._hang_seconds)
        if not self._longest_seconds:
            return _FIRST_STEP_FACTOR * self._hang_seconds
        return max(self._hang_seconds, _LONG_STEP_FACTOR * self._longest_seconds)

    def _hung(self, still_seconds: float) -> RankError:
        devices = self._spec.devices
        culprit = blamed(self._ask(self._spec.directory, len(devices)))
        still = f"nothing has moved for {still_seconds:.0f} s"
        if culprit is None:
            return RankError(f"{still}: all ranks wait for each other; a link between them is lost", fate="link")
        device = devices[culprit.rank]
        what = f"it is at {culprit.where}" if culprit.answers else "it does not answer, as if it were stopped"
        return RankError(
            f"rank {culprit.rank} ({device}) hangs: {still} and {what}; a longer --hang-timeout lets it",
            detail=culprit.stack, device=device, fate="hung",
        )  # fmt: skip
