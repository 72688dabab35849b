"""What is minimised in training, micro-batch by micro-batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from autopart.errors import UsageError
from autopart.running.meanloss import checked_loss

__all__ = ["LossFunction", "Objective"]

LossFunction = Callable[..., torch.Tensor]
"""called with the model's output and the targets; a mean over samples, so that micro-batches average to it"""


class Objective:
    """The loss of an output: the user's function, else the output's own ``loss``, else the mean of its squares.

    ``notes`` says so, once a loss was computed, when it is not the user's function, or that is no mean over samples.

    Args:
        loss_fn: the user's function.
        num_samples: of a micro-batch, where there are several: the first loss shows whether it is a mean over them.
    """

    def __init__(self, loss_fn: LossFunction | None = None, num_samples: int = 0) -> None:
        self._loss_fn, self._unchecked_samples = loss_fn, num_samples
        self.notes: tuple[str, ...] = ()

    def __call__(self, output: Any, *targets: Any) -> torch.Tensor:
        """The loss, a scalar.

        Raises:
            UsageError: there is no function, and nothing in the output to take a loss from; or it is no scalar.
        """
        loss = self._of_users(self._loss_fn, output, targets) if self._loss_fn else self._substitute(output)
        if not isinstance(loss, torch.Tensor) or loss.dim():
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise UsageError(f"the loss must be a scalar tensor, not {found}; return its mean")
        return loss

    def _of_users(self, loss_fn: LossFunction, output: Any, targets: tuple[Any, ...]) -> torch.Tensor:
        loss, why = checked_loss(loss_fn, output, targets, self._unchecked_samples)
        self._unchecked_samples = 0
        if why:
            self.notes = (why,)
            warnings.warn(why, stacklevel=2)
        return loss

    def _substitute(self, output: Any) -> torch.Tensor:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, torch.Tensor):
            self.notes = ("No loss_fn was given: the output's own loss was minimised.",)
            return loss
        self.notes = ("No loss_fn was given: the mean of the output's squares was minimised, which only times a step.",)
        floating = [
            leaf.float().square().mean()
            for leaf in pytree.tree_leaves(output)
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.requires_grad
        ]
        if not floating:
            raise UsageError("no output has a gradient, so there is nothing to train; give a loss_fn")
        return torch.stack(floating).sum()
