"""Measure what an optimizer's update of each layer's weights takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autopart.profiling.timing import Clock, laps_on, median_and_spread
from autopart.program import Program

__all__ = ["update_seconds"]

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def update_seconds(
    program: Program, weights: Mapping[str, torch.Tensor], optimizer: str, device: torch.device, clock: Clock
) -> tuple[float, ...]:
    """One update of every layer's trainable weights, each weight charged to the first layer that uses it."""
    seen: set[int] = set()
    known: dict[tuple[tuple[int, ...], ...], float] = {}
    seconds = []
    for layer in program.graph.layers:
        own = [index for index in layer.weights if index not in seen and program.graph.weights[index].trainable]
        seen.update(own)
        shapes = tuple(tuple(weights[program.graph.weights[index].name].shape) for index in own)
        if optimizer == "none" or not own:
            seconds.append(0.0)
            continue
        if shapes not in known:
            tensors = [weights[program.graph.weights[index].name] for index in own]
            known[shapes] = _one_update(tensors, OPTIMIZERS[optimizer], device, clock)
        seconds.append(known[shapes])
    return tuple(seconds)


def _one_update(
    tensors: Sequence[torch.Tensor], make: type[torch.optim.Optimizer], device: torch.device, clock: Clock
) -> float:
    copies = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = make(copies, lr=0.0)  # type: ignore[call-arg]
    samples = []
    for run in range(4):
        laps = laps_on(device, clock)
        laps.mark()
        optimizer.step()
        laps.mark()
        samples += laps.seconds() if run else []  # the first makes the states
    return median_and_spread(samples)[0]
