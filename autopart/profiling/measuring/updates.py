"""Measure what an optimizer's update of each layer's weights takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from autopart.profiling.measuring.timing import Clock, laps_on, median_and_spread
from autopart.program import Program

__all__ = ["one_update_seconds", "update_seconds", "updated_weights"]

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
}  # fmt: skip


def update_seconds(
    program: Program, weights: Mapping[str, torch.Tensor], optimizer: str, device: torch.device, clock: Clock
) -> tuple[float, ...]:
    """One update of every layer's trainable weights, each weight charged to the first layer that uses it."""
    known: dict[tuple[tuple[int, ...], ...], float] = {}
    seconds = []
    for names in updated_weights(program):
        shapes = tuple(tuple(weights[name].shape) for name in names)
        if shapes not in known:
            known[shapes] = one_update_seconds([weights[name] for name in names], optimizer, device, clock)
        seconds.append(known[shapes])
    return tuple(seconds)


def updated_weights(program: Program) -> tuple[tuple[str, ...], ...]:
    """Per layer, the names of the trainable weights that no earlier layer uses."""
    seen: set[int] = set()
    names = []
    for layer in program.graph.layers:
        own = [index for index in layer.weights if index not in seen and program.graph.weights[index].trainable]
        seen.update(own)
        names.append(tuple(program.graph.weights[index].name for index in own))
    return tuple(names)


def one_update_seconds(
    tensors: Sequence[torch.Tensor], optimizer: str, device: torch.device, clock: Clock
) -> float:
    """One update of copies of these weights; the median of three."""
    if optimizer == "none" or not tensors:
        return 0.0
    copies = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    updater = OPTIMIZERS[optimizer](copies, lr=0.0)
    samples = []
    for run in range(4):
        laps = laps_on(device, clock)
        laps.mark()
        updater.step()
        laps.mark()
        samples += laps.seconds() if run else []  # the first makes the states
    return median_and_spread(samples)[0]
