"""A plan run by torch.distributed.pipelining: one process per device, with all its stages or its part of one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from autopart.compression import Traffic
from autopart.errors import RunError
from autopart.program import Program
from autopart.running.cuts import cut_crossings
from autopart.running.dataparallel import GradientCodec, gather_replicas, own_share, replicated
from autopart.running.dealing import check_dealing, gradient_factor, scaled
from autopart.running.emulation import limited_links
from autopart.running.group import check_same_plan, check_size
from autopart.running.loss import LossFunction, Objective
from autopart.running.mesh import check_groups, make_mesh, process_device, routes, seats
from autopart.running.microbatch import JoinedOutputs, join_outputs, split_inputs, split_targets
from autopart.running.microbatchloss import MicrobatchLoss
from autopart.running.optimizers import OptimizerChoice, check_optimizer, make_optimizer
from autopart.running.schedules import make_prefetching
from autopart.running.stageparts import make_parts
from autopart.running.stages import (
    Feed,
    StageModule,
    boundary_examples,
    rank_stages,
    restore_shapes,
    spans,
    stage_device,
)
from autopart.running.stopwatch import Stopwatch, stopwatch_for
from autopart.running.tied import SharedWeights, exchanges
from autopart.running.timedstage import NOT_JOINED, TimedStage
from autopart.schema.codec import CodecName
from autopart.schema.plan import Plan
from autopart.sharding import Parted, draw_alike

__all__ = ["DistributedPipeline"]


class DistributedPipeline:
    """One process's part of a planned pipeline: the stages of one device, or its part of a stage that several share.

    Make it on every process of the default group (``process_devices`` numbers them) and call ``step`` on every one with
    the same arguments.  In training, gradients are those of the mean loss over the whole batch, and the optimizer, if
    there is one, has stepped when ``step`` returns.

    Args:
        program: the model, traced at the size of this process's share of a micro-batch (``samples_per_replica``).
        plan: of this very model.
        rank: of this process; it runs its device's stages.
        loss_fn: called with the model's output and the targets; without one the output's own loss is taken, or
            else the mean of its squares, and ``notes`` says so.
        optimizer: a name of the job, or a function of the stage's trainable parameters; without one gradients
            accumulate and are the caller's to use and to clear.
        stopwatch: what the parts of a step are timed with.
        joins_outputs: in inference ``step`` gives one output for the batch; False: a tuple of the micro-batches'
            outputs (of a replica its own), which saves a copy (of 206 MB for 1,024 tokens of GPT-2).
        compress: a codec for what crosses from rank to rank, instead of what the plan says.
        compress_gradients: what replicas' gradients travel as; other than "none" it changes them.
        limits: a file that all ranks share, to slow the links down that the plan's cluster gives; see
            docs/emulation.md.
        prefetch: how many computations before it is needed a receive is posted, instead of what the plan says; where
            that is not possible it is when it is needed, and ``notes`` says so.

    Raises:
        RunError: the plan is not of this model, its groups cannot be run, or the process group has another size than
            the plan has devices.
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
        compress: CodecName | None = None,
        compress_gradients: GradientCodec = "none",
        limits: Path | None = None,
        prefetch: int | None = None,
    ) -> None:
        _check_group(plan)
        self._program, self._plan = program, plan
        self._joins_outputs = joins_outputs
        self._training = plan.job.mode == "train"
        check_groups(plan, training=self._training)
        check_optimizer(plan)
        everyone = seats(plan)
        self._seat, self._mesh = everyone[rank], make_mesh(plan, rank)
        mine = rank_stages(plan, self._seat.rank)
        self._is_first, self._is_last = 0 in mine, len(plan.stages) - 1 in mine
        self.device = process_device(plan, rank)
        self.stopwatch = stopwatch or stopwatch_for(self.device)
        self._feed = Feed()
        self.traffic = Traffic()
        """what this rank sent since it was cleared"""
        self._cuts = cut_crossings(plan, program.graph, self.traffic, compress)
        check_dealing(plan, program.graph, rank, compress)
        self._parts = make_parts(program, plan, self._seat, self._mesh, self.device)
        self._weights = self._parts.weights
        self._stages = self._make_stages(mine, compress_gradients)
        early = plan.schedule.prefetch if prefetch is None else prefetch
        self._limit(limits, early > 0)
        self._shared = SharedWeights(
            self._weights, exchanges(self._parts.shared, everyone, self._parts.tied), rank
        )
        self._loss = MicrobatchLoss(
            program, Objective(loss_fn, self._samples_to_check), self._num_microbatches, self.stopwatch,
            len(plan.stages) - 1,
        )
        self._schedule, self._late = make_prefetching(
            plan.schedule.name, plan.ranks, self._stages, self._num_microbatches,
            self._loss if self._training else None, early,
        )
        parameters = (weight for weight in self._weights.values() if isinstance(weight, nn.Parameter))
        trainable = {id(weight): weight for weight in parameters if weight.requires_grad}
        self.optimizer = make_optimizer(optimizer, list(trainable.values())) if self._training else None

    def _make_stages(self, indices: tuple[int, ...], codec: GradientCodec) -> list[TimedStage]:
        graph, num_stages, group = self._program.graph, len(self._plan.stages), self._mesh.pipeline
        tied = [self._weights[name] for each in self._parts.shared for name in each.names if name in self._weights]
        stages = []
        for index, segment in zip(indices, self._parts.segments, strict=True):
            span = spans(self._plan, graph)[index]
            module: nn.Module = StageModule(
                segment, graph, span, self.device, training=self._training, feed=None if index else self._feed,
                incoming=self._cuts[index - 1] if index else None,
                outgoing=self._cuts[index] if index + 1 < num_stages else None,
                passed_back=partial(scaled, factor=gradient_factor(self._plan, index)),
            )
            if self._training:
                module = replicated(module, self._mesh.data, codec=codec, but=tied)
            stages.append(TimedStage(
                module, index, num_stages, self.device, stopwatch=self.stopwatch, group=group,
                routes=None if group is None else routes(self._plan, self._seat.process, index),
                input_args=self._examples(index - 1, span[0]) if index else self._numbers()[:1],
                output_args=self._examples(index, span[1]),
            ))  # fmt: skip
        return stages

    def _limit(self, limits: Path | None, early: bool) -> None:
        if limits is None:
            return
        member = self._seat.data * self._seat.num_tensor + self._seat.tensor
        links = limited_links(limits, self._plan, self._program.graph, self._cuts, early=early, member=member)
        for stage in self._stages:
            stage.links = links

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how this is run."""
        return tuple(filter(None, (*self._loss.objective.notes, *self._parts.notes, self._late)))

    def weights(self) -> Mapping[str, torch.Tensor]:
        """This process's parameters and buffers, by their names in the user's model; a tied one by one of its names.

        Of some it has a part only, where its stage's layers are shared by several devices; see ``whole_weights``.
        """
        once = {id(weight): name for name, weight in reversed(self._weights.items())}
        return {name: self._weights[name] for name in reversed(once.values())}

    def whole_weights(self) -> Mapping[str, torch.Tensor]:
        """Its stages' weights as they would be on one device; collective among the devices that share layers."""
        return {name: self.parted.join(name, weight.detach()) for name, weight in self.weights().items()}

    def whole_gradients(self) -> Mapping[str, torch.Tensor]:
        """The gradients of its stages' parameters, as ``whole_weights``; of those that have one."""
        weights = self.weights().items()
        return {name: self.parted.join(name, weight.grad) for name, weight in weights if weight.grad is not None}

    @property
    def parted(self) -> Parted:
        """Which of its weights are parts."""
        return self._parts.parted

    def user_weights(self) -> frozenset[str]:
        """Names of the weights that are the user's own objects, neither copies on another device nor parts."""
        return frozenset(name for name, weight in self._weights.items() if weight is self._program.weight(name))

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> Any:
        """One step over a whole batch.

        Args:
            *args: the model's arguments, read by the first stage.
            target: one target, or a tuple of targets, read by the last stage.
            **kwargs: the model's keyword arguments, read by the first stage.

        Returns:
            On the first process of the last stage the mean loss (training) or the model's output (inference); None on
            others.  With ``joins_outputs`` False each replica has its own outputs.
        """
        num_chunks = self._num_microbatches * self._seat.num_data
        for segment in self._parts.segments:
            segment.begin_step()
        if self._is_first:
            values = self._program.flatten_inputs(args, kwargs)
            self._feed.chunks = own_share(split_inputs(values, self._program.graph, num_chunks), self._seat)
        if self._training:
            targets = split_targets(target, self._plan.job.batch, num_chunks)
            self._loss.start(own_share(targets, self._seat))
            return self._train()
        with torch.no_grad():
            return self._infer()

    def _train(self) -> torch.Tensor | None:
        if self.optimizer is not None:  # replicas' gradients stay where they are sent from
            self.optimizer.zero_grad(set_to_none=self._mesh.data is None)
        self._shared.set_aside()
        self._run(target=self._numbers() if self._is_last else None)
        self._shared.wait()
        with self.stopwatch.part("optimizer"):
            self._shared.exchange()
            if self.optimizer is not None:
                self.optimizer.step()
        return self._mean_loss() if self._is_last else None

    def _mean_loss(self) -> torch.Tensor | None:
        loss = self._loss.mean()
        if self._mesh.data is not None:
            dist.reduce(loss, dist.get_global_rank(self._mesh.data, 0), group=self._mesh.data)
        return loss / self._seat.num_data if self._seat.is_first else None

    def _infer(self) -> Any:
        graph = self._program.graph
        joined = JoinedOutputs(graph, self._num_microbatches)
        chunks: list[tuple[torch.Tensor, ...]] = []
        take = joined.add if self._joins_outputs and self._mesh.data is None else chunks.append
        if self._is_last:
            self._stages[-1].take = lambda values: take(restore_shapes(values, graph))
        self._run()
        self._stages[-1].take = None
        if not self._is_last or self._seat.tensor:
            return None
        if not self._joins_outputs:
            return tuple(self._program.unflatten_outputs(chunk) for chunk in chunks)
        if self._mesh.data is None:
            return self._program.unflatten_outputs(joined.tensors)
        chunks = gather_replicas(chunks, self._mesh.data, self._seat)
        return self._program.unflatten_outputs(join_outputs(chunks, graph, len(chunks))) if chunks else None

    def _run(self, **words: Any) -> None:
        with self._alike():
            self._schedule.step(*((self._numbers(),) if self._is_first else ()), **NOT_JOINED, **words)

    def _alike(self) -> AbstractContextManager[None]:
        """Devices that share layers have to draw the same random numbers; replicas draw others."""
        if self._mesh.stage is None or not self._parts.draws:
            return nullcontext()
        seed = torch.randint(2**62, ()).to(self.device)
        dist.broadcast(seed, dist.get_global_rank(self._mesh.stage, 0), group=self._mesh.stage)
        return draw_alike(int(seed) + self._seat.data, self.device)

    def _examples(self, cut: int, boundary: int) -> tuple[torch.Tensor, ...]:
        crossings = self._cuts[cut] if cut < len(self._cuts) else None
        return boundary_examples(self._program.graph, boundary, training=self._training, crossings=crossings)

    def _numbers(self) -> torch.Tensor:
        return torch.arange(self._num_microbatches)

    @property
    def _samples_to_check(self) -> int:
        """Of a micro-batch, where the batch is cut at all."""
        is_cut = self._num_microbatches * self._seat.num_data > 1
        return self._program.graph.batch_size if is_cut else 0

    @property
    def _num_microbatches(self) -> int:
        return self._plan.schedule.num_microbatches


def _check_group(plan: Plan) -> None:
    if not dist.is_initialized():
        raise RunError("there is no process group; call torch.distributed.init_process_group() first")
    check_size(plan, dist.get_world_size())
    kinds = sorted({stage_device(plan, stage.index).type for stage in plan.stages})
    if len(kinds) > 1:
        raise RunError(
            f"the plan mixes {' and '.join(kinds)} devices, between which torch.distributed cannot send; use "
            f"autopart.split(), which runs it in one process"
        )
    check_same_plan(plan)
