"""torch's pipeline stage, which is timed, gives its outputs to us, and may talk to several processes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from autopart.running.limitedstage import LimitedStage
from autopart.running.mesh import Routes
from autopart.running.stopwatch import Stopwatch

__all__ = ["TimedStage"]


class TimedStage(LimitedStage):
    """A stage of torch's schedules.

    The schedule would concatenate the outputs, which scalars and batch-independent tensors do not survive; they are
    kept here.

    Args:
        *args: as of PipelineStage; all its shapes have to be given.
        stopwatch: times each micro-batch.
        routes: whom it exchanges values with, where stages are spread over several processes.
        **kwargs: as of PipelineStage.
    """

    def __init__(self, *args: Any, stopwatch: Stopwatch, routes: Routes | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopwatch, self._routes = stopwatch, routes
        self.keeps_outputs = False
        self.kept: list[tuple[torch.Tensor, ...]] = []

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """One micro-batch forward."""
        self.await_message("forward", args[0])
        with self._stopwatch.part("forward", self.stage_index):
            output = super().forward_one_chunk(*args, **kwargs)
        if self.keeps_outputs:
            self.kept.append(output)
        return output

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        """One micro-batch backward, or its half for the inputs."""
        if not self.has_backward:  # torch's schedule asks in inference too
            return
        self.await_message("backward", args[0])
        with self._stopwatch.part("backward", self.stage_index):
            super().backward_one_chunk(*args, **kwargs)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        """The half of a backward for the weights."""
        with self._stopwatch.part("backward", self.stage_index):
            super().backward_weight_one_chunk(*args, **kwargs)

    def get_fwd_send_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Sends of a micro-batch's outputs."""
        ops = super().get_fwd_send_ops(microbatch)
        return ops if self._routes is None else _routed(ops, self._routes.to_next)

    def get_fwd_recv_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Receives of a micro-batch's inputs."""
        ops = super().get_fwd_recv_ops(microbatch)
        return ops if self._routes is None else _routed(ops, [self._routes.from_previous])

    def get_bwd_send_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Sends of the gradients of a micro-batch's inputs."""
        ops = super().get_bwd_send_ops(microbatch)
        return ops if self._routes is None else _routed(ops, self._routes.to_previous)

    def get_bwd_recv_ops(self, microbatch: int) -> list[dist.P2POp]:
        """Receives of the gradients of a micro-batch's outputs."""
        ops = super().get_bwd_recv_ops(microbatch)
        return ops if self._routes is None else _routed(ops, [self._routes.from_next])

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


def _routed(ops: Sequence[dist.P2POp], peers: Sequence[int]) -> list[dist.P2POp]:
    """The same messages to these processes, in the default group, where all pairs can talk."""
    return [dist.P2POp(op.op, op.tensor, peer) for op in ops for peer in peers]
