"""torch's pipeline stage, which is timed, gives its outputs to us, and may talk to several processes at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining import ScheduleGPipe

from autopart.running.emulating.limitedlinks import Way
from autopart.running.emulating.limitedstage import LimitedStage
from autopart.running.mesh import Peer, Routes
from autopart.running.stopwatch import Stopwatch

__all__ = ["NOT_JOINED", "TimedStage"]

NOT_JOINED: dict[str, Any] = (
    {"return_outputs": False} if "return_outputs" in inspect.signature(ScheduleGPipe.step).parameters else {}
)
"""Newer torch can be told not to concatenate the last stage's outputs, which for a language model's logits costs as
much as a layer, and their memory once more."""


class TimedStage(LimitedStage):
    """A stage of torch's schedules.

    The schedule would concatenate the outputs, which scalars and batch-independent tensors do not survive; they are
    handed over here.

    Args:
        *args: as of PipelineStage; all its shapes have to be given.
        stopwatch: times each micro-batch.
        routes: whom it exchanges values with, where stages are spread over several processes.
        **kwargs: as of PipelineStage.
    """

    def __init__(self, *args: Any, stopwatch: Stopwatch, routes: Routes | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopwatch, self._routes = stopwatch, routes
        self.take: Callable[[tuple[torch.Tensor, ...]], None] | None = None
        """what is to have the outputs of the last stage in inference, one micro-batch's after the other"""

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch forward."""
        self.await_message("forward", args[0])
        with self._stopwatch.part("forward", self.stage_index, args[0]):
            output = super().forward_one_chunk(*args, **kwargs)
        if self.take is not None:
            self.take(output)
            if NOT_JOINED:  # nobody else wants them: torch would keep them until the next step
                self.output_chunks.clear()
                self.fwd_cache[args[0]] = ((), [])
        return output

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        """One micro-batch backward, or its half for the inputs."""
        if not self.has_backward:  # torch's schedule asks in inference too
            return
        self.await_message("backward", args[0])
        with self._stopwatch.part("backward", self.stage_index, args[0]):
            super().backward_one_chunk(*args, **kwargs)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        """The half of a backward for the weights."""
        with self._stopwatch.part("backward", self.stage_index, args[0]):
            super().backward_weight_one_chunk(*args, **kwargs)

    def get_fwd_send_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Sends of a micro-batch's outputs."""
        ops = super().get_fwd_send_ops(microbatch)
        ops = ops if self._routes is None else _routed(ops, self._routes.to_next, self._routes.num_samples)
        return self._tagged(ops, "forward", self.stage_index, microbatch)

    def get_fwd_recv_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Receives of a micro-batch's inputs."""
        ops = super().get_fwd_recv_ops(microbatch)
        ops = ops if self._routes is None else _routed(ops, self._routes.from_previous, self._routes.num_samples)
        return self._tagged(ops, "forward", self.stage_index - 1, microbatch)

    def get_bwd_send_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Sends of the gradients of a micro-batch's inputs."""
        ops = super().get_bwd_send_ops(microbatch)
        ops = ops if self._routes is None else _routed(ops, self._routes.to_previous, self._routes.num_samples)
        return self._tagged(ops, "backward", self.stage_index - 1, microbatch)

    def get_bwd_recv_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Receives of the gradients of a micro-batch's outputs."""
        ops = super().get_bwd_recv_ops(microbatch)
        ops = ops if self._routes is None else _routed(ops, self._routes.from_next, self._routes.num_samples)
        return self._tagged(ops, "backward", self.stage_index, microbatch)

    def _tagged(self, ops: list[dist.P2POp], way: Way, cut: int, microbatch: int) -> list[dist.P2POp]:
        """The same messages, counted and told apart: receives may be posted in another order than a peer sends in."""
        num_bytes = sum(op.tensor.nbytes for op in ops)
        if ops and ops[0].op is dist.isend:
            self._stopwatch.travels(sent_bytes=num_bytes)
        else:
            self._stopwatch.travels(received_bytes=num_bytes)
        for op in ops:
            op.tag = 1 + 2 * (microbatch * self.num_stages + cut) + (way == "backward")
        return ops

    # Newer torch lets the stages vote whether all were told their shapes, in messages along the pipeline's group, in
    # which stages of unequal width have no common one.  Ours always are told, so there is nothing to vote on.

    def _warmup_forward_vote(self, has_backward: bool, received_acc: torch.Tensor | None = None) -> torch.Tensor:
        if self._routes is None:
            return super()._warmup_forward_vote(has_backward, received_acc)
        return torch.ones(1, dtype=torch.int32, device=self.device)

    def _warmup_backward_result(self, received_result: torch.Tensor | None = None) -> torch.Tensor:
        if self._routes is None:
            return super()._warmup_backward_result(received_result)
        return torch.ones(1, dtype=torch.int32, device=self.device)


def _routed(ops: Sequence[dist.P2POp], peers: Sequence[Peer], num_samples: int) -> list[dist.P2POp]:
    """The same messages to these processes, in the default group, where all pairs can talk; to each its samples."""
    found = []
    for op in ops:
        is_batched = op.tensor.shape[0] == num_samples
        for peer in peers:
            if is_batched or peer.carries_rest:
                some = op.tensor[peer.start : peer.stop] if is_batched else op.tensor
                found.append(dist.P2POp(op.op, some, peer.process))
    return found
