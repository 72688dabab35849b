"""Weights that several stages use: each stage holds a copy, and the copies are kept equal.

A copy starts as the one of the first stage that uses the weight.  After the backward passes the copies' gradients are
summed, so every copy's gradient is the whole one, and equal optimizers take equal steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

__all__ = ["SharedWeights", "Sharing", "sharings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """Weights that the same stages (or ranks) use; the first of them is where they come from."""

    stages: tuple[int, ...]
    names: tuple[str, ...]


def sharings(weights_by_stage: tuple[tuple[str, ...], ...]) -> tuple[Sharing, ...]:
    """The weights used by more than one stage, by the stages that use them, in one order on every rank.

    >>> sharings((("a", "b"), ("c",), ("a",)))
    (Sharing(stages=(0, 2), names=('a',)),)
    """
    users: dict[str, list[int]] = {}
    for stage, names in enumerate(weights_by_stage):
        for name in names:
            users.setdefault(name, []).append(stage)
    shared: dict[tuple[int, ...], list[str]] = {}
    for name, stages in users.items():
        if len(stages) > 1:
            shared.setdefault(tuple(stages), []).append(name)
    return tuple(Sharing(stages=stages, names=tuple(shared[stages])) for stages in sorted(shared))


class SharedWeights:
    """This rank's part in keeping equal what several ranks hold; stages of one rank hold the same object anyway.

    Making one is collective: every rank of the default group has to, with the same sharings.

    Args:
        tensors: this rank's weights by name.
        shared: the weights that several ranks use, by ranks.
        rank: this process.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], shared: tuple[Sharing, ...], rank: int) -> None:
        groups = [(sharing, dist.new_group(list(sharing.stages))) for sharing in shared]
        self._members = [
            (sharing.stages[0], group, [tensors[name] for name in sharing.names])
            for sharing, group in groups
            if rank in sharing.stages
        ]
        self._earlier: list[torch.Tensor | None] = []
        with torch.no_grad():
            for source, group, weights in self._members:
                for weight in weights:
                    dist.broadcast(weight.detach(), src=source, group=group)

    def set_aside(self) -> None:
        """Before the backward passes: keeps earlier steps' gradients, which are whole already, out of the sum."""
        self._earlier = [weight.grad for weight in self._trainable]
        for weight in self._trainable:
            weight.grad = None

    def wait(self) -> None:
        """Waits until every holder has its gradients, so that the exchange alone can be timed."""
        for _, group, _ in self._members:
            dist.barrier(group=group)

    def exchange(self) -> None:
        """Sums this step's gradients of each shared parameter over its holders, and adds earlier steps'."""
        for _, group, weights in self._members:
            for weight in weights:
                if weight.requires_grad:
                    if weight.grad is None:  # no path to the loss from this stage; its share of the sum is zero
                        weight.grad = torch.zeros_like(weight)
                    dist.all_reduce(weight.grad, group=group)
        for weight, earlier in zip(self._trainable, self._earlier, strict=True):
            if earlier is not None and weight.grad is not None:
                weight.grad = earlier.add_(weight.grad)

    @property
    def _trainable(self) -> list[torch.Tensor]:
        return [weight for _, _, weights in self._members for weight in weights if weight.requires_grad]
