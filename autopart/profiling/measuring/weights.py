"""A program's weights on the device that is measured; the user's own stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from autopart.errors import DeviceError
from autopart.profiling.devices.here import physical_memory_bytes
from autopart.program import Program
from autopart.units import format_bytes

__all__ = ["PlacedWeights", "kept", "weights_on"]


def weights_on(program: Program, device: torch.device) -> dict[str, torch.Tensor]:
    """All weights on ``device``: the user's own where they are there, copies elsewhere, zeros for meta.

    Raises:
        DeviceError: the model has no weights, and others do not fit in memory.
    """
    missing = sum(weight.bytes for weight in program.graph.weights if program.weight(weight.name).is_meta)
    room = physical_memory_bytes()
    if device.type == "cpu" and missing > room:
        raise DeviceError(
            f"{program.graph.model} has no weights, and random ones ({format_bytes(missing)}) do not fit in this "
            f"machine's {format_bytes(room)}: `autopart profile --budget 60s` measures one layer at a time; or "
            "plan for kinds of the catalogue"
        )
    placed = {}
    for weight in program.graph.weights:
        own = program.weight(weight.name)
        tensor = torch.zeros(own.shape, dtype=own.dtype, device=device) if own.is_meta else own.detach().to(device)
        same = tensor.data_ptr() == own.data_ptr() and not own.is_meta
        placed[weight.name] = own if same else (
            nn.Parameter(tensor, own.requires_grad) if isinstance(own, nn.Parameter) else tensor
        )
    return placed


class PlacedWeights(dict[str, torch.Tensor]):
    """Weights that come to ``device`` when they are asked for, none of them the user's own object.

    Parameters have gradients of their own and, on the same device, the user's memory; buffers are copies, since a layer
    may write to them.
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        super().__init__()
        self._program, self._device = program, device

    def __missing__(self, name: str) -> torch.Tensor:
        own = self._program.weight(name)
        if own.is_meta:
            tensor = torch.zeros(own.shape, dtype=own.dtype, device=self._device)
        else:
            tensor = own.detach().to(self._device, copy=not isinstance(own, nn.Parameter))
        self[name] = nn.Parameter(tensor, own.requires_grad) if isinstance(own, nn.Parameter) else tensor
        return self[name]


@contextmanager
def kept(weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Buffers and gradients as they were, afterwards."""
    buffers = {name: t.detach().clone() for name, t in weights.items() if not isinstance(t, nn.Parameter)}
    gradients = {name: t.grad for name, t in weights.items()}
    for tensor in weights.values():
        tensor.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.grad = gradients[name]
                if name in buffers:
                    tensor.copy_(buffers[name])
