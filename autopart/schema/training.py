"""A training on paper: how it is to be done, what every step gave, where it stood at a checkpoint, what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.job import Optimizer

__all__ = ["LearningRateSchedule", "Precision", "Progress", "Recipe", "Recovery", "StepRecord", "Training"]

Precision = Literal["full", "bf16", "fp16"]
"""full: the types of the model; bf16 and fp16: autocast, fp16 with the loss scaled"""
LearningRateSchedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained.  A step is one update of the weights, from ``accumulate`` batches of the plan."""

    steps: int
    """in all, those before a checkpoint that is resumed included"""
    optimizer: Optimizer
    learning_rate: float | None = None
    """None: the optimizer's own default"""
    weight_decay: float | None = None
    lr_schedule: LearningRateSchedule = "constant"
    lr_warmup: int = 0
    """steps in which the rate grows from 0 in a straight line"""
    lr_floor: float = 0.0
    """what the rate falls to by the last step, as a share of ``learning_rate``"""
    clip: float | None = None
    """the most that the norm of all gradients together may be; None: any"""
    precision: Precision = "full"
    compress_gradients: Literal["none", "fp16", "bf16"] = "none"
    """what the gradients of data-parallel replicas travel as"""
    accumulate: int = 1
    """batches of the plan per step; the gradient is that of their mean loss"""
    shuffle: bool = True
    """datasets and arrays anew in every epoch; an iterable comes in its own order"""
    seed: int = 0
    checkpoint_every: int | None = None
    """steps; None: only at the end"""
    keep: int = 2
    """checkpoints that are kept, the latest"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1 or self.keep < 1:
            raise ValueError("steps, accumulate and keep must be at least 1")
        if self.optimizer == "none":
            raise ValueError("training takes an optimizer: adamw, adam, momentum or sgd")
        if self.lr_warmup < 0 or not 0 <= self.lr_floor <= 1:
            raise ValueError("the warm-up must not be negative and the floor a share between 0 and 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError("the learning rate must be positive")
        if self.clip is not None and not self.clip > 0:
            raise ValueError("the norm that gradients are clipped to must be positive")
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError("steps between checkpoints must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step, a line of the metrics file."""

    step: int
    """from 1"""
    loss: float | None
    """the mean over the samples of the step, before its update; None: it overflowed"""
    learning_rate: float
    gradient_norm: float | None
    """of all stages' gradients together, before they were clipped; None: they overflowed"""
    loss_scale: float | None
    """what the loss was multiplied with, in fp16"""
    skipped: bool
    """the scaled gradients overflowed, so the weights stayed as they were"""
    samples: int
    """read so far, this step's included"""
    seconds: float
    busy_seconds: tuple[float, ...]
    """of it, how long each rank computed; () in one process"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training stood when its checkpoint was written."""

    format_version: Literal[1] = 1
    step: int
    samples: int
    """read so far: the next one is this far into the data"""
    fingerprint: str
    """of the model"""
    optimizer: str
    data: str
    """how it was named"""
    loss_scale: float = 1.0
    good_steps: int = 0
    """since the loss scale last changed"""
    numbers: tuple[str, ...] = ()
    """fields of the optimizer's state that are numbers, saved as tensors"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A failure that a training went on after."""

    cause: str
    action: str
    """what was changed before it went on"""
    failed_after_step: int
    """steps done when it failed"""
    resumed_from_step: int
    """of the checkpoint it went on from; 0: from the beginning"""
    devices: tuple[str, ...]
    """that it went on with, by rank"""
    predicted_step_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What came of a training."""

    format_version: Literal[1] = 1
    model: str
    steps: int
    batch: int
    """samples of one step, accumulation included"""
    resumed_from_step: int
    """0: from the beginning"""
    losses: tuple[float | None, ...]
    """of every step of this training, each once"""
    median_step_seconds: float
    predicted_step_seconds: float
    """of ``accumulate`` batches, by the plan that was used last"""
    samples_per_second: float
    total_seconds: float
    """from start to end, loading and recoveries included"""
    num_skipped: int
    checkpoint: str | None
    """the latest; None: none was asked for"""
    recoveries: tuple[Recovery, ...] = ()
    notes: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
