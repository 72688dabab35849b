"""Values that cross a cut compressed, and their gradients on the way back.

``pack`` and ``unpack`` are differentiable: the gradient of what was packed comes as a wire and is decoded, that of what
was unpacked is encoded.  As gradients pass the codec by (straight through), the backward pass is that of the
uncompressed model at the values that arrived.

``topk`` feeds its error back (Seide et al. 2014; Stich et al. 2018, "Sparsified SGD with Memory"): what was not sent of
a value or a gradient is added to what the same micro-batch sends at the same cut in the next step.  Inference keeps no
such memory: an answer must not depend on the question before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from autopart.codecs import CODECS
from autopart.schema.codec import CodecName, is_compressible
from autopart.schema.graph import Graph, Value

__all__ = ["Crossing", "Traffic", "crossings"]

Way = Literal["forward", "backward"]


@dataclass(slots=True)
class Traffic:
    """Counts what was sent over compressed and uncompressed cuts, and what it would have been without codecs."""

    sent_bytes: int = 0
    plain_bytes: int = 0

    def add(self, sent: torch.Tensor, plain_bytes: int) -> None:
        """Counts one message."""
        self.sent_bytes += sent.nbytes
        self.plain_bytes += plain_bytes

    def clear(self) -> None:
        """Starts anew."""
        self.sent_bytes = self.plain_bytes = 0


class Crossing:
    """One value's way across one cut: values forward, gradients back, by the same codec.

    Args:
        codec: ``none`` only counts.
        shape: of the value.
        dtype: of the value.
        traffic: counts what is sent, values and gradients.
        num_microbatches: of a step, for codecs that feed their error back.
    """

    def __init__(
        self, codec: CodecName, shape: Sequence[int], dtype: torch.dtype, *, traffic: Traffic, num_microbatches: int = 1
    ) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._codec = CODECS.get(codec)
        self._traffic = traffic
        self._left_over: dict[tuple[Way, int], torch.Tensor] = {}
        self._packs, self._unpacks = (itertools.cycle(range(num_microbatches)) for _ in range(2))

    def wire_like(self, value: torch.Tensor) -> torch.Tensor:
        """An empty wire for a value like this one, on its device; that of a scalar is a vector of one element."""
        shape = self.shape or (1,)
        if self._codec is None:
            return torch.empty(shape, dtype=self.dtype, device=value.device, requires_grad=value.requires_grad)
        wire = self._codec.encode(torch.empty(shape, dtype=self.dtype, device="meta"))
        return torch.empty_like(wire, device=value.device, requires_grad=value.requires_grad)

    def pack(self, value: torch.Tensor) -> torch.Tensor:
        """What is sent for the value of the next micro-batch."""
        if self._codec is None:
            for _ in range(2 if value.requires_grad else 1):  # its gradient comes back as it is
                self._traffic.add(value, value.nbytes)
            return value
        slot = next(self._packs) if torch.is_grad_enabled() else None
        packed: torch.Tensor = _Pack.apply(value, self, slot)  # type: ignore[no-untyped-call]
        return packed

    def unpack(self, wire: torch.Tensor) -> torch.Tensor:
        """The value of the next micro-batch, from what came."""
        if self._codec is None:
            return wire.view(self.shape)
        slot = next(self._unpacks) if torch.is_grad_enabled() else None
        unpacked: torch.Tensor = _Unpack.apply(wire, self, slot)  # type: ignore[no-untyped-call]
        return unpacked

    def encode(self, tensor: torch.Tensor, way: Way, slot: int | None) -> torch.Tensor:
        """The wire of a value or a gradient; ``slot`` is the micro-batch, None where nothing is fed back."""
        if self._codec is None:
            wire = tensor
        elif not self._codec.feeds_back or slot is None:
            wire = self._codec.encode(tensor)
        else:
            earlier = self._left_over.get((way, slot))
            whole = tensor if earlier is None else tensor + earlier
            wire = self._codec.encode(whole)
            lost = whole - self._codec.decode(wire, self.shape, self.dtype)
            self._left_over[way, slot] = lost.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._traffic.add(wire, tensor.nbytes)
        return wire

    def decode(self, wire: torch.Tensor) -> torch.Tensor:
        """The value or gradient of a wire."""
        return wire if self._codec is None else self._codec.decode(wire, self.shape, self.dtype)


def crossings(
    graph: Graph, boundary: int, codec_of: Callable[[str], CodecName], traffic: Traffic, num_microbatches: int
) -> tuple[Crossing, ...]:
    """How every value crosses a cut, in the order of ``graph.crossing``.

    Args:
        graph: of one micro-batch.
        boundary: the layer before which the model is cut.
        codec_of: by a value's name; used where the value is compressible.
        traffic: counts what is sent.
        num_microbatches: of a step.
    """

    def crossing(value: Value) -> Crossing:
        codec = codec_of(value.name)
        return Crossing(
            codec if is_compressible(value, graph, codec) else "none", value.shape, getattr(torch, value.dtype),
            traffic=traffic, num_microbatches=num_microbatches,
        )  # fmt: skip

    return tuple(crossing(value) for value in graph.crossing(boundary))


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, crossing: Crossing, slot: int | None) -> torch.Tensor:
        ctx.crossing = crossing
        return crossing.encode(value, "forward", slot)

    @staticmethod
    def backward(ctx: Any, wire: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.crossing.decode(wire), None, None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wire: torch.Tensor, crossing: Crossing, slot: int | None) -> torch.Tensor:
        ctx.crossing, ctx.slot = crossing, slot
        return crossing.decode(wire)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.crossing.encode(gradient, "backward", ctx.slot), None, None
