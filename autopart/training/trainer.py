"""Training steps of one process: micro-batches through the pipeline, one norm, one update."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from autopart.errors import RunError, UsageError
from autopart.running import Batch, LossFunction, Objective, OptimizerChoice, Stopwatch, make_optimizer
from autopart.schema.training import Precision, Progress, Recipe, StepRecord
from autopart.training.gradients import Exchange, LossScale, clip_factor, squared_norm
from autopart.training.part import Part
from autopart.training.precision import autocast_dtype
from autopart.training.rates import rate_share

__all__ = ["Fed", "ScaledLoss", "Trainer"]



DEFAULT_RATE = 1e-3
"""torch's, of all optimizers that a job can name"""


class Trainable(Protocol):
    """A pipeline whose gradients add up over steps, because it has no optimizer of its own."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        ...

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """Forward and backward of a whole batch; the mean loss where that is known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """What a process is given for a batch."""

    batch: Batch
    digest: int
    """of the targets as it read them, negative where it reads inputs only: over all processes the sum is 0"""


class ScaledLoss:
    """The loss function that a pipeline is made with: the user's, under autocast, times the present loss scale."""

    def __init__(self, loss_fn: LossFunction | None, precision: Precision, device: torch.device) -> None:
        self.objective = Objective(loss_fn)
        self._autocast, self._device = autocast_dtype(precision, device), device
        self.scale = LossScale() if precision == "fp16" else LossScale(scale=1.0)
        self.is_scaled = precision == "fp16"

    def __call__(self, output: Any, *targets: Any) -> torch.Tensor:
        """The scaled loss of a micro-batch."""
        with torch.autocast(self._device.type, self._autocast) if self._autocast else contextlib.nullcontext():
            return self.objective(output, *targets) * self.scale.scale


class Trainer:
    """One process's part of every training step; all ranks have to take each step.

    Args:
        pipeline: made with ``loss`` and without an optimizer.
        part: what this process holds.
        recipe: how to train.
        loss: of the pipeline.
        exchange: sums numbers over the ranks.
        stopwatch: the pipeline's, which also keeps the pace of an emulated device; None in one process.
        optimizer: instead of the recipe's, a function of the trainable parameters.
        guard: entered around the computing of every step, a memory cap for example.
        clock: seconds.
    """

    def __init__(
        self, pipeline: Trainable, part: Part, recipe: Recipe, loss: ScaledLoss, *, exchange: Exchange,
        stopwatch: Stopwatch | None = None, optimizer: OptimizerChoice = None,
        guard: AbstractContextManager[Any] | None = None, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._pipeline, self._part, self._recipe, self._loss = pipeline, part, recipe, loss
        self._exchange, self._stopwatch, self._clock = exchange, stopwatch, clock
        self._guard = guard or contextlib.nullcontext()
        self.step_number = self.samples = 0
        self._optimizer_name = recipe.optimizer if optimizer is None else "custom"
        self._trainable = part.trainable
        self._counted = [weight for name, weight in self._trainable.items() if name in part.counted]
        self.optimizer = make_optimizer(optimizer or recipe.optimizer, list(self._trainable.values()))
        self._full_rates = self._set_up_groups() if self.optimizer else []

    def step(self, batches: Iterator[Fed], batch_samples: int, *, stop: bool = False) -> tuple[StepRecord, bool]:
        """One update of the weights, from as many batches as the recipe accumulates.

        Args:
            batches: gives the next ones.
            batch_samples: samples of one.
            stop: this rank wants the training to stop after this step.

        Returns:
            What the step gave, the same on every rank, and whether any rank wants to stop.

        Raises:
            RunError: a gradient is not finite, and that is not for the loss scale to mend; or inputs and targets
                are not of the same samples.
        """
        start_seconds = self._clock()
        step, recipe, scale = self.step_number + 1, self._recipe, self._loss.scale.scale
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout as in a run that was never interrupted
        with self._guard:
            total, digest = self._accumulate(batches)
        own_figures = self._own_figures(total / recipe.accumulate / scale, stop, digest)
        squares, loss, stops, difference, *busy_seconds = self._exchange(own_figures)
        _check_same_data(difference, step)
        norm = math.sqrt(squares) / recipe.accumulate / scale if math.isfinite(squares) else math.inf
        overflow, rate = self._overflows(norm, loss, step), self._rate(step)
        if not overflow:
            with self._guard:
                self._update(clip_factor(norm, recipe.clip) / recipe.accumulate / scale)
        if self._loss.is_scaled:
            self._loss.scale = self._loss.scale.after(overflow=overflow)
        self.step_number, self.samples = step, self.samples + batch_samples * recipe.accumulate
        return StepRecord(
            step=step, loss=loss if math.isfinite(loss) else None, learning_rate=rate,
            gradient_norm=None if overflow else norm, loss_scale=scale if self._loss.is_scaled else None,
            skipped=overflow, samples=self.samples, seconds=self._clock() - start_seconds,
            busy_seconds=tuple(busy_seconds) if self._stopwatch else (),
        ), stops > 0  # fmt: skip

    def state(self) -> tuple[dict[str, dict[str, torch.Tensor]], tuple[str, ...]]:
        """The optimizer's state by parameter, and which of its fields are numbers, given as tensors.

        Raises:
            UsageError: a field is neither; such an optimizer cannot be saved.
        """
        state: dict[str, dict[str, torch.Tensor]] = {}
        numbers: set[str] = set()
        for name, parameter in self._trainable.items() if self.optimizer else ():
            fields = self.optimizer.state.get(parameter, {}) if self.optimizer else {}
            state[name] = {}
            for field, value in fields.items():
                if isinstance(value, bool | int | float):
                    numbers.add(field)
                    value = torch.tensor(float(value), dtype=torch.float64)
                if isinstance(value, torch.Tensor):
                    state[name][field] = value
                elif value is not None:
                    raise UsageError(f"the optimizer keeps {field}, a {type(value).__name__}, which is not saved")
        return state, tuple(sorted(numbers))

    def progress(self, fingerprint: str, data: str, numbers: tuple[str, ...]) -> Progress:
        """Where the training stands."""
        scale = self._loss.scale
        return Progress(
            step=self.step_number, samples=self.samples, fingerprint=fingerprint, optimizer=self._optimizer_name,
            data=data, loss_scale=scale.scale, good_steps=scale.good_steps, numbers=numbers,
        )  # fmt: skip

    def restore(self, progress: Progress, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Goes on from where a training stood; the weights have been loaded by whoever calls.

        Raises:
            UsageError: it was done with another optimizer.
        """
        if progress.optimizer != self._optimizer_name:
            raise UsageError(
                f"the checkpoint is of a training with {progress.optimizer}, not {self._optimizer_name}; give "
                f"--optimizer {progress.optimizer}, or train to another directory"
            )
        self.step_number, self.samples = progress.step, progress.samples
        if self._loss.is_scaled:
            self._loss.scale = LossScale(scale=progress.loss_scale, good_steps=progress.good_steps)
        for name, parameter in self._trainable.items() if self.optimizer else ():
            fields = {
                field: value.item() if field in progress.numbers else value
                for field, value in state.get(name, {}).items()
            }
            if fields and self.optimizer:
                self.optimizer.state[parameter] = fields

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this was run."""
        found = [*self._loss.objective.notes, *self._pipeline.notes]
        if self._optimizer_name == "custom" and self._part.parted.shards:
            found.append(
                "The optimizer has parts of weights that several devices share: right for optimizers that treat every "
                "element by itself, as torch's Adam and SGD do."
            )
        return tuple(dict.fromkeys(found))

    def _accumulate(self, batches: Iterator[Fed]) -> tuple[float, int]:
        """The sum of the losses, where they are known, and of the digests."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=not self._part.has_replicas)
        total, digest = 0.0, 0
        for _ in range(self._recipe.accumulate):
            fed = next(batches)
            batch, digest = fed.batch, digest + fed.digest
            loss = self._pipeline.step(*batch.args, target=batch.target, **batch.kwargs)
            total += 0.0 if loss is None else float(loss)
        return total, digest

    def _overflows(self, norm: float, loss: float, step: int) -> bool:
        """Whether the step's gradients are of no use, which a smaller loss scale mends."""
        if math.isfinite(norm) and math.isfinite(loss):
            return False
        if self._loss.is_scaled and self._loss.scale.scale > 1.0:
            return True
        what = f"gradient norm of step {step} is {norm}" if math.isfinite(loss) else f"loss of step {step} is {loss}"
        raise RunError(f"the {what}: give a lower --lr, --clip 1.0 or a longer --lr-warmup, or look at its data")

    def _set_up_groups(self) -> list[float]:
        """Puts the recipe's figures into the optimizer's groups; their full learning rates."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            if self._recipe.learning_rate is not None:
                group["lr"] = self._recipe.learning_rate
            if self._recipe.weight_decay is not None:
                group["weight_decay"] = self._recipe.weight_decay
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _rate(self, step: int) -> float:
        """Sets the learning rate of a step; gives the first group's, or the recipe's where there is no parameter."""
        share = rate_share(self._recipe, step)
        if self.optimizer is None:
            return (self._recipe.learning_rate or DEFAULT_RATE) * share
        for group, full in zip(self.optimizer.param_groups, self._full_rates, strict=True):
            group["lr"] = full * share
        return self._full_rates[0] * share

    def _update(self, factor: float) -> None:
        gradients = [weight.grad for weight in self._trainable.values() if weight.grad is not None]
        with self._stopwatch.part("optimizer") if self._stopwatch else contextlib.nullcontext():
            if factor != 1.0 and gradients:
                torch._foreach_mul_(gradients, factor)
            if self.optimizer is not None:
                self.optimizer.step()

    def _own_figures(self, loss: float, stop: bool, digest: int) -> list[float]:
        """What this rank adds to the sums over all: squares, loss, wish to stop, digest, and seconds by rank."""
        lap = self._stopwatch.take() if self._stopwatch else None
        busy_seconds = [0.0] * self._part.num_ranks
        busy_seconds[self._part.rank] = lap.forward_seconds + lap.backward_seconds if lap else 0.0
        return [squared_norm(self._counted), loss, float(stop), float(digest), *busy_seconds]


def _check_same_data(difference: float, step: int) -> None:
    if difference:
        raise RunError(
            f"the processes that read inputs and targets of step {step} have other samples: the data are not the same "
            f"in both; seed what they draw from numpy or random, and sort what they list"
        )
