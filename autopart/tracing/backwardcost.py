"""What a layer's backward needs beside what its forward saved, from a run of both on fake tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import get_gradient_edge

from autopart.livebytes import LiveBytes
from autopart.segment import Segment
from autopart.tracing.culprit import first_line

__all__ = ["TrainingBytes", "training_bytes"]


@dataclass(frozen=True, slots=True)
class TrainingBytes:
    """Of one layer and one micro-batch, beyond what forward saved for backward; weights excluded."""

    later_bytes: int = 0
    """the most that a pass needs at once where the weights' gradients are there: the gradients of the layer's values,
    temporaries, and a weight's new gradient until it is added"""
    first_bytes: int = 0
    """the same where they are not: new gradients stay"""
    failure: str = ""
    """what backward raised; the bytes are then at least as many as forward saved"""


@dataclass(slots=True)
class _Gradients:
    """Takes every weight's gradient away as soon as it is accumulated, and remembers how much that was."""

    taken_bytes: int = 0
    seen: set[int] = field(default_factory=set)

    def take(self, weight: torch.Tensor) -> None:
        if weight.grad is not None and id(weight) not in self.seen:
            self.seen.add(id(weight))
            self.taken_bytes += weight.grad.untyped_storage().nbytes()
        weight.grad = None


class _Watch(LiveBytes):  # type: ignore[no-untyped-call]
    """Beside the peak, the peak if gradients that were taken away were still there."""

    def __init__(self, uncounted: Sequence[torch.Tensor], gradients: _Gradients) -> None:
        super().__init__(uncounted)
        self._gradients = gradients
        self.first_peak_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        self.first_peak_bytes = max(self.first_peak_bytes, self.now_bytes + self._gradients.taken_bytes)
        return result


def training_bytes(segment: Segment, inputs: Sequence[torch.Tensor]) -> TrainingBytes:
    """Run the segment forward and backward; call it under the FakeTensorMode of its weights and inputs.

    The gradients of its outputs count as its own.  Forward counts with its inputs, on top of what it saves.
    """
    weights = [weight for weight in segment.parameters() if weight.requires_grad]
    gradients = _Gradients()
    hooks = [
        weight.register_post_accumulate_grad_hook(gradients.take)  # type: ignore[no-untyped-call]
        for weight in weights
    ]
    watch = _Watch([*segment.parameters(), *segment.buffers(), *inputs], gradients)
    failure = ""
    try:
        with torch.enable_grad(), watch:
            outputs = segment(*inputs)
            forward_bytes = watch.peak_bytes + sum(tensor.untyped_storage().nbytes() for tensor in inputs)
            edges = [get_gradient_edge(each) for each in outputs if each.requires_grad]
            like = [each.detach().to("meta") for each in outputs if each.requires_grad]
            del outputs
            saved_bytes = watch.now_bytes
            watch.peak_bytes = watch.first_peak_bytes = 0
            if edges:
                failure = _backward(edges, [torch.empty_like(each, device=segment.device) for each in like])
    finally:
        for hook in hooks:
            hook.remove()
        for tensor in (*weights, *inputs):
            tensor.grad = None
    least_bytes = max(forward_bytes - saved_bytes, saved_bytes if failure else 0)
    return TrainingBytes(
        later_bytes=max(least_bytes, watch.peak_bytes - saved_bytes),
        first_bytes=max(least_bytes, watch.first_peak_bytes - saved_bytes),
        failure=failure,
    )


def _backward(edges: Sequence[Any], gradients: Sequence[torch.Tensor]) -> str:
    """Run it; what it raised, if it did: a backward of the user's own may read values, which fakes have not."""
    try:
        torch.autograd.backward(edges, gradients)
    except Exception as error:
        return first_line(error)
    return ""
