"""One stage of a pipeline in this process: its micro-batches forward, and later backward, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from autopart.compression import Crossing
from autopart.running.inprocess.parcels import Parcel, Sender
from autopart.segment import Segment

__all__ = ["LocalCut", "LocalStage"]

Tensors = tuple[torch.Tensor, ...]
Gradients = tuple[torch.Tensor | None, ...]


class LocalStage:
    """A segment whose autograd graph begins at what comes in.

    Args:
        segment: its layers.
        carries_gradient: of every value that comes in, whether a gradient goes back for it.
    """

    def __init__(self, segment: Segment, carries_gradient: Sequence[bool]) -> None:
        self.segment = segment
        self._carries_gradient = tuple(carries_gradient)
        self._alive: dict[int, tuple[Tensors, Tensors]] = {}

    def forward(self, number: int, values: Tensors, end: Callable[[Tensors], Tensors] | None = None) -> Tensors:
        """What the segment makes of a micro-batch's values; with grad enabled it is kept for ``backward``.

        Args:
            number: of the micro-batch.
            values: that come in.
            end: of the last stage, what the backward begins at: the loss of its outputs.
        """
        leaves = tuple(
            value.detach().requires_grad_() if carries else value
            for value, carries in zip(values, self._carries_gradient, strict=True)
        )
        outputs = self.segment(*leaves)
        if end is not None:
            outputs = end(outputs)
        if torch.is_grad_enabled():
            self._alive[number] = leaves, outputs
        return tuple(output.detach() for output in outputs)

    def backward(self, number: int, gradients: Gradients | None) -> Gradients:
        """The gradients of what came in, None where there is none.

        Args:
            number: of the micro-batch, which is forgotten.
            gradients: of what ``forward`` gave, None where there is none; None for the last stage, which gave a loss.
        """
        leaves, outputs = self._alive.pop(number)
        if gradients is None:
            torch.autograd.backward(outputs)
        else:
            pairs = [
                (output, gradient) for output, gradient in zip(outputs, gradients, strict=True)
                if gradient is not None and output.requires_grad
            ]
            if pairs:
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])
        return tuple(leaf.grad if leaf.requires_grad else None for leaf in leaves)

    def clear(self) -> None:
        """Forgets micro-batches whose backward never came, and what was made of the weights."""
        self._alive.clear()
        self.segment.begin_step()


class LocalCut:
    """The boundary between two stages of this process: what was sent over it, by micro-batch.

    Args:
        crossings: of every value; None between stages of one device, where nothing is sent.
        send: moves tensors between devices.
        before: device of the stage before it.
        after: device of the stage after it.
    """

    def __init__(
        self, crossings: Sequence[Crossing] | None, send: Sender, before: torch.device, after: torch.device
    ) -> None:
        self._crossings, self._send, self._before, self._after = crossings, send, before, after
        self._values: dict[int, tuple[Parcel, ...]] = {}
        self._gradients: dict[int, tuple[Parcel | None, ...]] = {}

    def send_values(self, number: int, values: Tensors) -> None:
        """Sends a micro-batch on."""
        if self._crossings is not None:
            pairs = zip(self._crossings, values, strict=True)
            values = tuple(crossing.encode(value, "forward", _slot(number)) for crossing, value in pairs)
        self._values[number] = tuple(self._send(value, self._after) for value in values)

    def values(self, number: int) -> Tensors:
        """A micro-batch on the device after the cut."""
        values = tuple(parcel() for parcel in self._values.pop(number))
        if self._crossings is None:
            return values
        return tuple(crossing.decode(value) for crossing, value in zip(self._crossings, values, strict=True))

    def send_gradients(self, number: int, gradients: Gradients) -> None:
        """Sends a micro-batch's gradients back."""
        if self._crossings is not None:
            pairs = zip(self._crossings, gradients, strict=True)
            gradients = tuple(
                None if gradient is None else crossing.encode(gradient, "backward", number)
                for crossing, gradient in pairs
            )
        self._gradients[number] = tuple(
            None if gradient is None else self._send(gradient, self._before) for gradient in gradients
        )

    def gradients(self, number: int) -> Gradients:
        """A micro-batch's gradients on the device before the cut."""
        gradients = tuple(None if parcel is None else parcel() for parcel in self._gradients.pop(number))
        if self._crossings is None:
            return gradients
        pairs = zip(self._crossings, gradients, strict=True)
        return tuple(None if gradient is None else crossing.decode(gradient) for crossing, gradient in pairs)

    def clear(self) -> None:
        """Forgets what was sent and never taken."""
        self._values.clear()
        self._gradients.clear()


def _slot(number: int) -> int | None:
    """Of a codec that feeds its error back; inference has none."""
    return number if torch.is_grad_enabled() else None
