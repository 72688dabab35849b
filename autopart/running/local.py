"""A plan run in one process: the stages one after the other, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from autopart.errors import RunError
from autopart.program import Program
from autopart.running.loss import LossFunction, Objective
from autopart.running.microbatch import join_outputs, split_inputs, split_targets
from autopart.running.optimizers import OptimizerChoice, make_optimizer
from autopart.running.stages import spans, stage_device, stage_segment, stage_weights
from autopart.running.tied import sharings
from autopart.schema.plan import Plan

__all__ = ["LocalPipeline"]


class LocalPipeline:
    """A planned pipeline in this process, with the same ``step`` as one rank of a DistributedPipeline.

    It shows that a plan computes what the model does, and runs it where memory is what is short; stages do not
    overlap, so it is no faster than its devices one after the other.

    Args:
        program: the model, traced at the size of the plan's micro-batch.
        plan: of this very model.
        loss_fn: called with the model's output and the targets; without one the output's own loss is taken, or
            else the mean of its squares, and ``notes`` says so.
        optimizer: a name of the job, or a function of the trainable parameters; without one gradients accumulate
            and are the caller's to use and to clear.

    Raises:
        RunError: the plan is not of this model, a device of it is not here, or a trainable weight is shared by
            stages on different devices.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        *,
        loss_fn: LossFunction | None = None,
        optimizer: OptimizerChoice = None,
    ) -> None:
        self._program, self._plan = program, plan
        self._training = plan.job.mode == "train"
        self._objective = Objective(loss_fn)
        self._devices = [stage_device(plan, stage.index) for stage in plan.stages]
        placed: dict[torch.device, dict[str, torch.Tensor]] = {device: {} for device in self._devices}
        self._segments = [
            stage_segment(program, span, device, placed[device])
            for span, device in zip(spans(plan, program.graph), self._devices, strict=True)
        ]
        _check_shared(plan, program)
        parameters = {id(weight): weight for segment in self._segments for weight in segment.parameters()}
        trainable = [weight for weight in parameters.values() if weight.requires_grad]
        self.optimizer = make_optimizer(optimizer, trainable) if self._training else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        return self._objective.notes

    def weights(self) -> Mapping[str, torch.Tensor]:
        """All stages' parameters and buffers, by their names in the user's model."""
        return {
            name: weight
            for segment in self._segments
            for name, weight in (*segment.named_parameters(), *segment.named_buffers())
        }

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """One step over a whole batch.

        Args:
            *args: the model's arguments.
            target: one target, or a tuple of targets.
            **kwargs: the model's keyword arguments.

        Returns:
            The mean loss (training) or the model's output (inference).
        """
        num_microbatches = self._plan.schedule.num_microbatches
        chunks = split_inputs(self._program.flatten_inputs(args, kwargs), self._program.graph, num_microbatches)
        if self._training:
            return self._train(chunks, split_targets(target, self._plan.job.batch, num_microbatches))
        with torch.no_grad():
            outputs = (self._forward(values) for values in chunks)
            return self._program.unflatten_outputs(join_outputs(outputs, self._program.graph, num_microbatches))

    def _train(
        self, chunks: tuple[tuple[torch.Tensor, ...], ...], targets: tuple[tuple[Any, ...], ...]
    ) -> torch.Tensor:
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        losses = []
        for values, target in zip(chunks, targets, strict=True):
            loss = self._objective(self._program.unflatten_outputs(self._forward(values)), *target)
            torch.autograd.backward(loss / len(chunks))
            losses.append(loss.detach())
        if self.optimizer is not None:
            self.optimizer.step()
        return torch.stack(losses).mean()

    def _forward(self, values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        for segment, device in zip(self._segments, self._devices, strict=True):
            values = segment(*(value.to(device) for value in values))
        return values


def _check_shared(plan: Plan, program: Program) -> None:
    for shared in sharings(stage_weights(plan, program.graph)):
        devices = {str(stage_device(plan, stage)) for stage in shared.stages}
        if plan.job.mode == "train" and len(devices) > 1:
            raise RunError(
                f"{shared.names[0]} is shared by stages on {', '.join(sorted(devices))}, which one process cannot "
                f"train in copies; use autopart.split(), or one process per stage under torchrun"
            )
