"""Gradients of a whole model whose parts lie on several ranks: one norm, one clipping, one decision about overflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["Exchange", "LossScale", "across_ranks", "alone", "clip_factor", "squared_norm"]

Exchange = Callable[[Sequence[float]], tuple[float, ...]]
"""sums numbers over the ranks, each rank's own first, second, ...; every rank has to call it"""

_CLIP_EPSILON = 1e-6
"""as in torch.nn.utils.clip_grad_norm_"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """What the loss is multiplied with so that float16 gradients do not vanish; grows and shrinks as they allow.

    Dynamic loss scaling (Micikevicius et al. 2018, section 3.2) with the numbers of ``torch.amp.GradScaler``.  That
    one decides from the gradients of one process; here all ranks have to decide alike, from their common norm.
    """

    scale: float = 2.0**16
    good_steps: int = 0
    """without overflow, since the scale last changed"""
    growth_steps: int = 2000
    """after as many good ones it grows"""

    def after(self, *, overflow: bool) -> LossScale:
        """The scale for the next step: half after an overflow, twice after ``growth_steps`` good ones."""
        if overflow:
            return replace(self, scale=self.scale / 2, good_steps=0)
        if self.good_steps + 1 == self.growth_steps:
            return replace(self, scale=self.scale * 2, good_steps=0)
        return replace(self, good_steps=self.good_steps + 1)


def alone(numbers: Sequence[float]) -> tuple[float, ...]:
    """An Exchange of one process: the numbers themselves."""
    return tuple(numbers)


def across_ranks(device: torch.device) -> Exchange:
    """An Exchange over the default process group, whose tensors lie on ``device``; sums are float64."""

    def exchange(numbers: Sequence[float]) -> tuple[float, ...]:
        sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    return exchange


def squared_norm(parameters: Iterable[nn.Parameter]) -> float:
    """The sum of the squares of all gradients; 0 where there are none."""
    norms: dict[torch.device, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad.detach(), dtype=torch.float32)
            norms.setdefault(norm.device, []).append(norm)
    return sum(float(torch.stack(each).to("cpu", torch.float64).square().sum()) for each in norms.values())


def clip_factor(norm: float, most: float | None) -> float:
    """What gradients of this norm are multiplied with so that it is at most ``most``.

    >>> clip_factor(2.0, None), round(clip_factor(2.0, 1.0), 5)
    (1.0, 0.5)
    """
    if most is None or not math.isfinite(norm):
        return 1.0
    return min(1.0, most / (norm + _CLIP_EPSILON))
