"""A plan run by torch.distributed.pipelining: one process per device, with all its stages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from autopart.errors import RunError
from autopart.program import Program
from autopart.running.loss import LossFunction, Objective
from autopart.running.microbatch import join_outputs, split_inputs, split_targets
from autopart.running.optimizers import OptimizerChoice, make_optimizer
from autopart.running.schedules import make_schedule
from autopart.running.stages import (
    Feed,
    StageModule,
    boundary_examples,
    rank_stages,
    rank_weights,
    restore_shapes,
    spans,
    stage_device,
    stage_segment,
)
from autopart.running.stopwatch import Stopwatch, stopwatch_for
from autopart.running.tied import SharedWeights, sharings
from autopart.schema.plan import Plan

__all__ = ["DistributedPipeline"]


class DistributedPipeline:
    """One rank's part of a planned pipeline: the stages of one device (``Plan.devices_by_rank``).

    Make it on every rank of the default process group and call ``step`` on every rank with the same arguments.  In
    training, gradients are those of the mean loss over the whole batch, and the optimizer, if there is one, has
    stepped when ``step`` returns.

    Args:
        program: the model, traced at the size of the plan's micro-batch.
        plan: of this very model.
        rank: which device's stages this process runs.
        loss_fn: called with the model's output and the targets; without one the output's own loss is taken, or
            else the mean of its squares, and ``notes`` says so.
        optimizer: a name of the job, or a function of the stage's trainable parameters; without one gradients
            accumulate and are the caller's to use and to clear.
        stopwatch: what the parts of a step are timed with.
        joins_outputs: in inference ``step`` gives one output for the batch; False: a tuple of the micro-batches'
            outputs, which saves a copy (of 206 MB for 1,024 tokens of GPT-2).

    Raises:
        RunError: the plan is not of this model, or the process group has another size than the plan has devices.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        rank: int,
        *,
        loss_fn: LossFunction | None = None,
        optimizer: OptimizerChoice = None,
        stopwatch: Stopwatch | None = None,
        joins_outputs: bool = True,
    ) -> None:
        _check_group(plan)
        self._program, self._plan = program, plan
        self._joins_outputs = joins_outputs
        self._training = plan.job.mode == "train"
        mine = rank_stages(plan, rank)
        self._is_first, self._is_last = 0 in mine, len(plan.stages) - 1 in mine
        self.device = stage_device(plan, mine[0])
        self.stopwatch = stopwatch or stopwatch_for(self.device)
        self._feed = Feed()
        self._weights: dict[str, torch.Tensor] = {}
        self._stages = self._make_stages(mine)
        self._shared = SharedWeights(self._weights, sharings(rank_weights(plan, program.graph)), rank)
        self._loss = _MicrobatchLoss(
            program, Objective(loss_fn), self._num_microbatches, self.stopwatch, len(plan.stages) - 1
        )
        self._schedule = make_schedule(
            plan.schedule.name, plan.ranks, self._stages, self._num_microbatches,
            self._loss if self._training else None,
        )
        parameters = (weight for weight in self._weights.values() if isinstance(weight, nn.Parameter))
        trainable = {id(weight): weight for weight in parameters if weight.requires_grad}
        self.optimizer = make_optimizer(optimizer, list(trainable.values())) if self._training else None

    def _make_stages(self, indices: tuple[int, ...]) -> list[_TimedStage]:
        graph, num_stages = self._program.graph, len(self._plan.stages)
        placed: dict[str, torch.Tensor] = {}
        stages = []
        for index in indices:
            span = spans(self._plan, graph)[index]
            segment = stage_segment(self._program, span, self.device, placed)
            self._weights |= dict(segment.named_parameters(remove_duplicate=False))
            self._weights |= dict(segment.named_buffers(remove_duplicate=False))
            module = StageModule(
                segment, graph, span, self.device, training=self._training, feed=None if index else self._feed
            )
            stages.append(_TimedStage(
                module, index, num_stages, self.device, stopwatch=self.stopwatch,
                input_args=self._examples(span[0]) if index else self._numbers()[:1],
                output_args=self._examples(span[1]),
            ))  # fmt: skip
        return stages

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        return self._loss.objective.notes

    def weights(self) -> Mapping[str, torch.Tensor]:
        """This rank's parameters and buffers, by their names in the user's model; a tied one by one of its names."""
        once = {id(weight): name for name, weight in reversed(self._weights.items())}
        return {name: self._weights[name] for name in reversed(once.values())}

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """One step over a whole batch.

        Args:
            *args: the model's arguments, read by the first stage.
            target: one target, or a tuple of targets, read by the last stage.
            **kwargs: the model's keyword arguments, read by the first stage.

        Returns:
            On the last rank the mean loss (training) or the model's output (inference); None on other ranks.
        """
        if self._is_first:
            values = self._program.flatten_inputs(args, kwargs)
            self._feed.chunks = split_inputs(values, self._program.graph, self._num_microbatches)
        if self._training:
            self._loss.start(split_targets(target, self._plan.job.batch, self._num_microbatches))
            return self._train()
        with torch.no_grad():
            self._run()
            return self._output() if self._is_last else None

    def _train(self) -> torch.Tensor | None:
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        self._shared.set_aside()
        self._run(target=self._numbers() if self._is_last else None)
        self._shared.wait()
        with self.stopwatch.part("optimizer"):
            self._shared.exchange()
            if self.optimizer is not None:
                self.optimizer.step()
        return self._loss.mean() if self._is_last else None

    def _run(self, **words: Any) -> None:
        self._stages[-1].kept.clear()
        self._stages[-1].keeps_outputs = self._is_last and not self._training
        self._schedule.step(*((self._numbers(),) if self._is_first else ()), **_NOT_JOINED, **words)

    def _output(self) -> Any:
        graph = self._program.graph
        chunks = [restore_shapes(values, graph) for values in self._stages[-1].kept]
        self._stages[-1].kept.clear()
        if not self._joins_outputs:
            return tuple(self._program.unflatten_outputs(chunk) for chunk in chunks)
        return self._program.unflatten_outputs(join_outputs(chunks, graph, len(chunks)))

    def _examples(self, boundary: int) -> tuple[torch.Tensor, ...]:
        return boundary_examples(self._program.graph, boundary, training=self._training)

    def _numbers(self) -> torch.Tensor:
        return torch.arange(self._num_microbatches)

    @property
    def _num_microbatches(self) -> int:
        return self._plan.schedule.num_microbatches


_NOT_JOINED: dict[str, Any] = (
    {"return_outputs": False} if "return_outputs" in inspect.signature(ScheduleGPipe.step).parameters else {}
)
"""Newer torch can be told not to concatenate the last stage's outputs, which for a language model's logits costs as
much as a layer; we keep them ourselves."""


class _TimedStage(PipelineStage):
    """torch's stage, which times each micro-batch and gives its outputs to us rather than to the schedule.

    The schedule would concatenate the outputs, which scalars and batch-independent tensors do not survive.
    """

    def __init__(self, *args: Any, stopwatch: Stopwatch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopwatch = stopwatch
        self.keeps_outputs = False
        self.kept: list[tuple[torch.Tensor, ...]] = []

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        with self._stopwatch.part("forward", self.stage_index):
            output = super().forward_one_chunk(*args, **kwargs)
        if self.keeps_outputs:
            self.kept.append(output)
        return output

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        if not self.has_backward:  # torch's schedule asks in inference too
            return
        with self._stopwatch.part("backward", self.stage_index):
            super().backward_one_chunk(*args, **kwargs)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        with self._stopwatch.part("backward", self.stage_index):
            super().backward_weight_one_chunk(*args, **kwargs)


class _MicrobatchLoss:
    """The loss of one micro-batch as torch's schedule asks for it: the last stage's tensors, the number's tensor."""

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
        """Begins a step."""
        self._targets = targets
        self._losses.clear()

    def mean(self) -> torch.Tensor:
        """The mean loss of the step's micro-batches."""
        return torch.stack(self._losses).mean()

    def __call__(self, values: tuple[torch.Tensor, ...], number: torch.Tensor) -> torch.Tensor:
        with self._stopwatch.part("forward", self._stage):
            output = self._program.unflatten_outputs(restore_shapes(values, self._program.graph))
            loss = self.objective(output, *self._targets[int(number)])
            self._losses.append(loss.detach())
            return loss / self._num_microbatches


def _check_group(plan: Plan) -> None:
    if not dist.is_initialized():
        raise RunError("there is no process group; call torch.distributed.init_process_group() first")
    num_ranks = len(plan.devices_by_rank)
    if dist.get_world_size() != num_ranks:
        raise RunError(
            f"the plan has stages on {num_ranks} device{'s'[: num_ranks > 1]}, the process group has "
            f"{dist.get_world_size()} processes; start it with torchrun --nproc-per-node {num_ranks}"
        )
    kinds = sorted({stage_device(plan, stage.index).type for stage in plan.stages})
    if len(kinds) > 1:
        raise RunError(
            f"the plan mixes {' and '.join(kinds)} devices, between which torch.distributed cannot send; use "
            f"autopart.split(), which runs it in one process"
        )
