"""A plan run by torch.distributed.pipelining: one process per stage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from autopart.errors import RunError
from autopart.program import Program
from autopart.running.loss import LossFunction, Objective
from autopart.running.microbatch import join_outputs, split_inputs, split_targets
from autopart.running.optimizers import OptimizerChoice, make_optimizer
from autopart.running.stages import (
    Feed,
    StageModule,
    boundary_examples,
    restore_shapes,
    spans,
    stage_device,
    stage_segment,
    stage_weights,
)
from autopart.running.stopwatch import Stopwatch, stopwatch_for
from autopart.running.tied import SharedWeights, sharings
from autopart.schema.plan import Plan

__all__ = ["SCHEDULES", "DistributedPipeline"]

SCHEDULES: dict[str, type[PipelineScheduleSingle]] = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class DistributedPipeline:
    """One rank's part of a planned pipeline; the rank is the index of its stage.

    Make it on every rank of the default process group and call ``step`` on every rank with the same arguments.  In
    training, gradients are those of the mean loss over the whole batch, and the optimizer, if there is one, has
    stepped when ``step`` returns.

    Args:
        program: the model, traced at the size of the plan's micro-batch.
        plan: of this very model.
        rank: which stage this process runs.
        loss_fn: called with the model's output and the targets; without one the output's own loss is taken, or
            else the mean of its squares, and ``notes`` says so.
        optimizer: a name of the job, or a function of the stage's trainable parameters; without one gradients
            accumulate and are the caller's to use and to clear.
        stopwatch: what the parts of a step are timed with.
        joins_outputs: in inference ``step`` gives one output for the batch; False: a tuple of the micro-batches'
            outputs, which saves a copy (of 206 MB for 1,024 tokens of GPT-2).

    Raises:
        RunError: the plan is not of this model, or the process group has another size than the plan has stages.
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
        span = spans(plan, program.graph)[rank]
        self.device = stage_device(plan, rank)
        self.stopwatch = stopwatch or stopwatch_for(self.device)
        self._program, self._plan = program, plan
        self._joins_outputs = joins_outputs
        self._training = plan.job.mode == "train"
        self._is_first, self._is_last = rank == 0, rank == len(plan.stages) - 1
        self._feed = Feed()
        self._segment = stage_segment(program, span, self.device)
        self._shared = SharedWeights(self._segment, sharings(stage_weights(plan, program.graph)), rank)
        module = StageModule(
            self._segment, program.graph, span, self.device, training=self._training,
            feed=self._feed if self._is_first else None,
        )
        self._stage = _TimedStage(
            module, rank, len(plan.stages), self.device, stopwatch=self.stopwatch,
            input_args=self._numbers()[:1] if self._is_first else self._examples(span[0]),
            output_args=self._examples(span[1]),
        )
        self._loss = _MicrobatchLoss(program, Objective(loss_fn), self._num_microbatches, self.stopwatch)
        # Inference has one order of micro-batches, whatever the name; torch's 1F1B wants more of them than stages.
        schedule = SCHEDULES[plan.schedule.name if self._training else "gpipe"]
        # The loss divides by the number of micro-batches itself: torch's scale_grads would divide what has been
        # accumulated by earlier steps once more.
        self._schedule = schedule(
            self._stage, self._num_microbatches, loss_fn=self._loss if self._training else None, scale_grads=False
        )
        trainable = [weight for weight in self._segment.parameters() if weight.requires_grad]
        self.optimizer = make_optimizer(optimizer, trainable) if self._training else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        return self._loss.objective.notes

    def weights(self) -> Mapping[str, torch.Tensor]:
        """This stage's parameters and buffers, by their names in the user's model."""
        return dict(self._segment.named_parameters()) | dict(self._segment.named_buffers())

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
        self._stage.kept.clear()
        self._stage.keeps_outputs = self._is_last and not self._training
        self._schedule.step(*((self._numbers(),) if self._is_first else ()), **_NOT_JOINED, **words)

    def _output(self) -> Any:
        graph = self._program.graph
        chunks = [restore_shapes(values, graph) for values in self._stage.kept]
        self._stage.kept.clear()
        if not self._joins_outputs:
            return tuple(self._program.unflatten_outputs(chunk) for chunk in chunks)
        return self._program.unflatten_outputs(join_outputs(chunks, graph))

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
        with self._stopwatch.part("forward"):
            output = super().forward_one_chunk(*args, **kwargs)
        if self.keeps_outputs:
            self.kept.append(output)
        return output

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        with self._stopwatch.part("backward"):
            super().backward_one_chunk(*args, **kwargs)


class _MicrobatchLoss:
    """The loss of one micro-batch as torch's schedule asks for it: the last stage's tensors, the number's tensor."""

    def __init__(self, program: Program, objective: Objective, num_microbatches: int, stopwatch: Stopwatch) -> None:
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
        with self._stopwatch.part("forward"):
            output = self._program.unflatten_outputs(restore_shapes(values, self._program.graph))
            loss = self.objective(output, *self._targets[int(number)])
            self._losses.append(loss.detach())
            return loss / self._num_microbatches


def _check_group(plan: Plan) -> None:
    if not dist.is_initialized():
        raise RunError("there is no process group; call torch.distributed.init_process_group() first")
    if dist.get_world_size() != len(plan.stages):
        raise RunError(
            f"the plan has {len(plan.stages)} stages, the process group {dist.get_world_size()} processes; start it "
            f"with torchrun --nproc-per-node {len(plan.stages)}"
        )
    kinds = sorted({stage_device(plan, stage.index).type for stage in plan.stages})
    if len(kinds) > 1:
        raise RunError(
            f"the plan mixes {' and '.join(kinds)} devices, between which torch.distributed cannot send; use "
            f"autopart.split(), which runs it in one process"
        )
