"""A plan run in one process: one thread issues the micro-batches of all stages in the order of the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from autopart.compression import Traffic
from autopart.orders import Action, one_order, orders_of
from autopart.program import Program
from autopart.running.cuts import cut_crossings
from autopart.running.inprocess.copies import Copies
from autopart.running.inprocess.localstage import LocalCut, LocalStage
from autopart.running.inprocess.parcels import sender_for
from autopart.running.loss import LossFunction, Objective
from autopart.running.microbatch import join_outputs, split_inputs, split_targets
from autopart.running.optimizers import OptimizerChoice, check_optimizer, make_optimizer
from autopart.running.stages import check_alone, rerun_planned, spans, stage_device, stage_segment, stage_weights
from autopart.running.tied import sharings
from autopart.schema.codec import CodecName
from autopart.schema.plan import Plan

__all__ = ["LocalPipeline"]

Tensors = tuple[torch.Tensor, ...]


class LocalPipeline:
    """A planned pipeline in this process, with the same ``step`` as one rank of a DistributedPipeline.

    Every stage has an autograd graph of its own, so each micro-batch goes forward and backward by itself, and a device
    keeps no more of them than its plan says.  CUDA devices work at the same time, as their work is only queued here.
    Stages on the processor take turns; zero-bubble's two halves of a backward are taken together.

    Args:
        program: the model, traced at the size of the plan's micro-batch.
        plan: of this very model.
        loss_fn: called with the model's output and the targets; without one the output's own loss is taken, or
            else the mean of its squares, and ``notes`` says so.
        optimizer: a name of the job, or a function of the trainable parameters; without one gradients accumulate
            and are the caller's to use and to clear.
        compress: a codec for what crosses from device to device, instead of what the plan says.

    Raises:
        RunError: the plan is not of this model, a device of it is not here, or a stage is spread over several.
    """

    def __init__(
        self,
        program: Program,
        plan: Plan,
        *,
        loss_fn: LossFunction | None = None,
        optimizer: OptimizerChoice = None,
        compress: CodecName | None = None,
    ) -> None:
        check_alone(plan)
        check_optimizer(plan)
        self._program, self._plan = program, plan
        self._training = plan.job.mode == "train"
        self._objective = Objective(
            loss_fn, program.graph.batch_size if plan.schedule.num_microbatches > 1 else 0
        )
        self._devices = tuple(stage_device(plan, stage.index) for stage in plan.stages)
        self.traffic = Traffic()
        """what crossed from device to device since it was cleared"""
        self._placed: dict[torch.device, dict[str, torch.Tensor]] = {device: {} for device in self._devices}
        self._notes: tuple[str, ...] = ()
        self._stages = self._make_stages()
        self._cuts = self._make_cuts(compress)
        self._copies = Copies(tuple(self._tied()) if self._training else ())
        schedule = plan.schedule.name if self._training else "gpipe"
        orders = orders_of(schedule, plan.ranks, plan.schedule.num_microbatches)
        self._order = one_order(orders, training=self._training)
        trainable = [
            weight for weight in self.weights().values() if isinstance(weight, nn.Parameter) and weight.requires_grad
        ]
        once = list({id(weight): weight for weight in trainable}.values())
        self.optimizer = make_optimizer(optimizer, once) if self._training else None

    def _make_stages(self) -> tuple[LocalStage, ...]:
        graph, made = self._program.graph, []
        for stage, span, device in zip(self._plan.stages, spans(self._plan, graph), self._devices, strict=True):
            whole = stage_segment(self._program, span, device, self._placed[device], dtype=stage.dtype)
            segment, notes = rerun_planned(whole, stage, training=self._training)
            self._notes += notes
            carries = [self._training and value.differentiable for value in graph.crossing(span[0])]
            made.append(LocalStage(segment, carries))
        return tuple(made)

    def _make_cuts(self, compress: CodecName | None) -> tuple[LocalCut, ...]:
        send = sender_for(self._devices)
        found = cut_crossings(self._plan, self._program.graph, self.traffic, compress)
        ends = zip(found, self._devices[:-1], self._devices[1:], strict=True)
        return tuple(LocalCut(crossings, send, before, after) for crossings, before, after in ends)

    def _tied(self) -> Iterator[list[torch.Tensor]]:
        """The tensors of every weight that stages on several devices use, the first stage's first."""
        for shared in sharings(stage_weights(self._plan, self._program.graph)):
            for name in shared.names:
                homes = dict.fromkeys(self._devices[stage] for stage in shared.stages)
                once = {id(weight): weight for weight in (self._placed[home][name] for home in homes)}
                if len(once) > 1:
                    yield list(once.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        return self._objective.notes + self._notes

    def weights(self) -> Mapping[str, torch.Tensor]:
        """All stages' parameters and buffers, by their names in the user's model; of a tied one the first stage's."""
        found: dict[str, torch.Tensor] = {}
        for stage in self._stages:
            for name, weight in (*stage.segment.named_parameters(), *stage.segment.named_buffers()):
                found.setdefault(name, weight)
        return found

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """One step over a whole batch.

        Args:
            *args: the model's arguments.
            target: one target, or a tuple of targets.
            **kwargs: the model's keyword arguments.

        Returns:
            The mean loss (training) or the model's output (inference).
        """
        graph, num_microbatches = self._program.graph, self._plan.schedule.num_microbatches
        chunks = split_inputs(self._program.flatten_inputs(args, kwargs), graph, num_microbatches)
        for stage in self._stages:  # what a step that was broken off has left
            stage.clear()
        for cut in self._cuts:
            cut.clear()
        if self._training:
            return self._train(chunks, split_targets(target, self._plan.job.batch, num_microbatches))
        with torch.no_grad():
            outputs = (self._forward(action, chunks) for action in self._order)
            ends = (each for each in outputs if each)
            return self._program.unflatten_outputs(join_outputs(ends, graph, num_microbatches))

    def _train(self, chunks: tuple[Tensors, ...], targets: tuple[tuple[Any, ...], ...]) -> torch.Tensor:
        if self.optimizer is not None:
            self.optimizer.zero_grad()
        self._copies.refresh()
        losses: list[torch.Tensor] = []
        for action in self._order:
            if action.deed == "forward":
                losses += self._forward(action, chunks, targets)
            elif action.deed != "weight":  # taken with the input's half
                self._backward(action)
        self._copies.gather()
        if self.optimizer is not None:
            self.optimizer.step()
        return torch.stack(losses).sum()

    def _forward(
        self, action: Action, chunks: tuple[Tensors, ...], targets: tuple[tuple[Any, ...], ...] | None = None
    ) -> Tensors:
        """What the last stage gives: outputs, or in training the loss; nothing of other stages."""
        stage, number = action.stage, action.microbatch
        if stage:
            values = self._cuts[stage - 1].values(number)
        else:
            values = tuple(value.to(self._devices[0]) for value in chunks[number])
        if stage + 1 < len(self._stages):
            self._cuts[stage].send_values(number, self._stages[stage].forward(number, values))
            return ()
        if targets is None:
            return self._stages[stage].forward(number, values)
        return self._stages[stage].forward(number, values, lambda outputs: self._loss(outputs, targets[number]))

    def _loss(self, outputs: Tensors, target: tuple[Any, ...]) -> Tensors:
        """The micro-batch's share of the mean loss."""
        loss = self._objective(self._program.unflatten_outputs(outputs), *target)
        return (loss / self._plan.schedule.num_microbatches,)

    def _backward(self, action: Action) -> None:
        stage, number = action.stage, action.microbatch
        gradients = self._cuts[stage].gradients(number) if stage + 1 < len(self._stages) else None
        returned = self._stages[stage].backward(number, gradients)
        if stage:
            self._cuts[stage - 1].send_gradients(number, returned)
