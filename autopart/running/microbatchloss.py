"""The loss of one micro-batch as torch's schedules ask for it: the last stage's tensors, the number's tensor."""

from __future__ import annotations

from typing import Any

import torch

from autopart.program import Program
from autopart.running.loss import Objective
from autopart.running.stages import restore_shapes
from autopart.running.stopwatch import Stopwatch

__all__ = ["MicrobatchLoss"]


class MicrobatchLoss:
    """Called by the schedule with a micro-batch's outputs and its number; divides by how many there are.

    Args:
        program: whose output the tensors are.
        objective: what is minimised.
        num_microbatches: of a step.
        stopwatch: times it, as part of the last stage's forward.
        stage: number of the last stage.
    """

    def __init__(
        self, program: Program, objective: Objective, num_microbatches: int, stopwatch: Stopwatch, stage: int
    ) -> None:
        self._stage = stage
        self.objective = objective
        self._program = program
        self._num_microbatches = num_microbatches
        self._stopwatch = stopwatch
        self._targets: tuple[tuple[Any, ...], ...] = ()
        self._losses: list[torch.Tensor] = []

    def start(self, targets: tuple[tuple[Any, ...], ...]) -> None:
        """Begins a step, with the targets of its micro-batches."""
        self._targets = targets
        self._losses.clear()

    def mean(self) -> torch.Tensor:
        """The mean loss of the step's micro-batches."""
        return torch.stack(self._losses).mean()

    def __call__(self, values: tuple[torch.Tensor, ...], number: torch.Tensor) -> torch.Tensor:
        """The micro-batch's share of the mean loss."""
        with self._stopwatch.part("forward", self._stage, int(number)):
            output = self._program.unflatten_outputs(restore_shapes(values, self._program.graph))
            loss = self.objective(output, *self._targets[int(number)])
            self._losses.append(loss.detach())
            return loss / self._num_microbatches
