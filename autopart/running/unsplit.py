"""The unsplit model on one device, stepped like a pipeline: what a plan is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autopart.running.loss import LossFunction, Objective
from autopart.running.optimizers import OptimizerChoice, make_optimizer
from autopart.running.stopwatch import Stopwatch
from autopart.schema.job import Mode

__all__ = ["UnsplitModel"]


class UnsplitModel:
    """The user's module as it was written, the whole batch at once.

    Args:
        model: on its device already.
        mode: infer or train.
        loss_fn: called with the model's output and the targets.
        optimizer: a name of the job, or a function of the trainable parameters.
        stopwatch: what the parts of a step are timed with; it also keeps the pace of an emulated device.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Mode,
        *,
        loss_fn: LossFunction | None,
        optimizer: OptimizerChoice,
        stopwatch: Stopwatch,
    ) -> None:
        self._model = model
        self._mode = mode
        self._objective = Objective(loss_fn)
        self.stopwatch = stopwatch
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = make_optimizer(optimizer, trainable) if mode == "train" else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        return self._objective.notes

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """One step over a whole batch: the loss (training) or the model's output (inference)."""
        if self._mode == "train":
            return self._train(args, kwargs, target)
        with torch.no_grad(), self.stopwatch.part("forward"):
            return self._model(*args, **kwargs)

    def _train(self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> torch.Tensor:
        targets = () if target is None else target if isinstance(target, tuple) else (target,)
        self._model.zero_grad()
        with self.stopwatch.part("forward"):
            loss = self._objective(self._model(*args, **kwargs), *targets)
        with self.stopwatch.part("backward"):
            torch.autograd.backward(loss)
        with self.stopwatch.part("optimizer"):
            if self.optimizer is not None:
                self.optimizer.step()
        return loss.detach()
