"""Custom autograd.Functions whose backward is not the one of their operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["Doubled", "Guarded", "Reversed", "Rounded", "SwapScale", "rounded"]

Function = torch.autograd.Function


class Rounded(Function):
    """Rounds; backward as if it did not (a straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return torch.round(x) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * (ctx.scale + 3.0), None


_apply = Rounded.apply


def rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
    """By a method that was bound when this module was imported."""
    return _apply(x, scale)  # type: ignore[no-any-return,no-untyped-call]


class Reversed(Function):
    """Turns the gradient around; its output is a view of its input."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return -gradients[0]


class Doubled(Function):
    """Works in place."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * 5.0


class SwapScale(Function):
    """Takes and gives nests; tensors in nests are not differentiated."""

    @staticmethod
    def forward(ctx: Any, first: dict[str, torch.Tensor], second: list[Any], nothing: None) -> Any:
        assert nothing is None
        return (second[0].detach() * 2.0, second[1]), first["x"].detach() * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None, None


class Guarded(Function):
    """Checkpointing by hand."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        with torch.no_grad():
            return layer(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(gradients[0])
        return None, x.grad
