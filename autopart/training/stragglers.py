"""Devices that have become slow: how long each computes, against what the plan says of it."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from autopart.running import process_devices
from autopart.schema.plan import Plan
from autopart.schema.training import StepRecord

__all__ = ["Straggler", "Stragglers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A device that computes at less of its planned speed than the fastest of the others does of its own."""

    device: str
    speed: float
    """of what was planned, the fastest device's being 1"""
    step_seconds: float
    """a step takes with it"""
    pace: float
    """seconds of the fastest device / those planned: what a new plan's times are to be multiplied with"""


class Stragglers:
    """Looks at the last ``window`` steps; a drift of the whole machine makes no straggler.

    Args:
        plan: says how long each rank should compute.
        accumulate: batches per step.
        factor: how many times slower than the others a device has to be.
        window: steps of which the medians count.
    """

    def __init__(self, plan: Plan, *, accumulate: int, factor: float = 2.0, window: int = 10) -> None:
        num_batches = plan.schedule.num_microbatches * accumulate
        self._devices, self._factor = process_devices(plan), factor
        self._planned_seconds = [
            num_batches * sum(
                stage.forward_seconds + stage.backward_seconds
                for stage in plan.stages if device in stage.devices
            )
            for device in self._devices
        ]  # fmt: skip
        self._steps: deque[StepRecord] = deque(maxlen=window)

    def note(self, record: StepRecord) -> Straggler | None:
        """Takes a step in; the slowest device if it is one that holds the others up."""
        self._steps.append(record)
        if len(self._steps) < (self._steps.maxlen or 0) or len(self._devices) < 2 or not min(self._planned_seconds):
            return None
        ratios = [
            statistics.median(step.busy_seconds[rank] for step in self._steps) / planned
            for rank, planned in enumerate(self._planned_seconds)
        ]
        least = min(ratios)
        if not least or max(ratios) < self._factor * least:
            return None
        return Straggler(
            device=self._devices[ratios.index(max(ratios))], speed=least / max(ratios), pace=least,
            step_seconds=statistics.median(step.seconds for step in self._steps),
        )  # fmt: skip

    def forget(self) -> None:
        """Starts anew, so that what was found is not found again for a while."""
        self._steps.clear()
