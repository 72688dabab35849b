"""Tied weights in one process: a stage on another device than the first that uses the weight has a copy there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["Copies"]


class Copies:
    """Keeps the copies of a weight like the first, and their gradients in the first's.

    Args:
        groups: of every weight that several devices have, the tensors; the first is the one that optimizers and
            callers see.
    """

    def __init__(self, groups: Sequence[Sequence[torch.Tensor]]) -> None:
        self._groups = tuple((first, tuple(copies)) for first, *copies in groups)

    def refresh(self) -> None:
        """Before a step: the copies take the weight's values, which may have been trained."""
        with torch.no_grad():
            for weight, copies in self._groups:
                for copy in copies:
                    copy.copy_(weight, non_blocking=True)

    def gather(self) -> None:
        """After the backward passes: the copies' gradients are added to the weight's."""
        for weight, copies in self._groups:
            for copy in copies:
                if copy.grad is not None:
                    moved = copy.grad.to(weight.device)
                    weight.grad = moved if weight.grad is None else weight.grad.add_(moved)
                    copy.grad = None
