"""Replicas of a stage, which share every micro-batch's samples and sum their gradients once per step.

The sum is that of torch's DistributedDataParallel, which pipelining knows: it holds the messages back until the last
micro-batch's backward, and offers hooks that send gradients in fewer bytes.  Every replica's loss is a mean over its
own samples, so the mean of their gradients is the gradient of the mean over all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import fx, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from autopart.errors import UsageError
from autopart.running.mesh import Seat
from autopart.segment import Segment

__all__ = [
    "GRADIENT_CODECS",
    "GradientCodec",
    "batch_statistics",
    "gather_replicas",
    "own_share",
    "replicated",
    "start_alike",
]

GradientCodec = Literal["none", "fp16", "bf16"]
"""what replicas' gradients travel as"""

GRADIENT_CODECS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "fp16": default_hooks.fp16_compress_hook,
    "bf16": default_hooks.bf16_compress_hook,
}


def replicated(
    module: nn.Module, group: dist.ProcessGroup | None, *, codec: GradientCodec = "none",
    but: Collection[torch.Tensor] = (),
) -> nn.Module:  # fmt: skip
    """A stage's module whose gradients are those of all replicas; itself if it is alone or has nothing to train.

    Gradients live in the buckets they are sent from, so that they need no memory twice.

    Args:
        module: the stage.
        group: its replicas.
        codec: what their gradients travel as.
        but: weights whose gradients somebody else sums.

    Raises:
        UsageError: there is no such codec, or the group cannot send it.
    """
    if codec not in GRADIENT_CODECS:
        raise UsageError(f"no codec of gradients is called {codec!r}; use one of {', '.join(GRADIENT_CODECS)}")
    others = {id(weight) for weight in but}
    left_out = [name for name, weight in module.named_parameters(remove_duplicate=False) if id(weight) in others]
    if group is None or not any(weight.requires_grad and id(weight) not in others for weight in module.parameters()):
        return module
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, left_out)  # type: ignore[no-untyped-call]
    copies = DistributedDataParallel(
        module, process_group=group, find_unused_parameters=True, gradient_as_bucket_view=True, **_OWN_BUFFERS
    )
    hook = GRADIENT_CODECS[codec]
    if hook is not None:
        try:
            copies.register_comm_hook(group, hook)
        except TypeError as error:
            raise UsageError(
                f"gradients cannot travel as {codec} over {dist.get_backend(group)} ({error}); use fp16 or none"
            ) from error
    return copies


_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
"""Every replica's running statistics are its own; newer torch has another word for it."""


def own_share(chunks: Sequence[Any], seat: Seat) -> tuple[Any, ...]:
    """A replica's chunks, of a batch cut into as many per micro-batch as there are replicas."""
    return tuple(chunks[seat.data :: seat.num_data])


def gather_replicas(
    chunks: Iterable[tuple[torch.Tensor, ...]], group: dist.ProcessGroup | None, seat: Seat
) -> list[tuple[torch.Tensor, ...]]:
    """All replicas' chunks in the order of the batch, on the first of them; on the others none."""
    if group is None:
        return list(chunks)
    found: list[tuple[torch.Tensor, ...]] = []
    for chunk in chunks:
        columns = [_gathered(value.contiguous(), group, seat) for value in chunk]
        found += zip(*columns, strict=True)
    return found


def start_alike(weights: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    """Gives all devices of a group the weights of the first."""
    if group is None:
        return
    source = dist.get_global_rank(group, 0)
    with torch.no_grad():
        for weight in weights:
            values = weight.detach().contiguous()
            dist.broadcast(values, src=source, group=group)
            if values.data_ptr() != weight.data_ptr():
                weight.copy_(values)


def batch_statistics(segments: Iterable[Segment]) -> bool:
    """Whether a stage has batch normalisation, whose statistics are of the samples that it sees at once."""
    return any("batch_norm" in str(node.target) for segment in segments for node in _operators(segment.body))


def _operators(body: fx.GraphModule) -> Iterable[fx.Node]:
    for module in body.modules():
        if isinstance(module, fx.GraphModule):
            yield from (node for node in module.graph.nodes if node.op == "call_function")


def _gathered(value: torch.Tensor, group: dist.ProcessGroup, seat: Seat) -> list[torch.Tensor]:
    room = [torch.empty_like(value) for _ in range(seat.num_data)] if seat.data == 0 else None
    dist.gather(value, room, dst=dist.get_global_rank(group, 0), group=group)
    return room or []
