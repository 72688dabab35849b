"""Weights that several stages use: each stage holds a copy, and the copies are kept equal.

A copy starts as the one of the first stage that uses the weight.  After the backward passes the copies' gradients are
summed, so every copy's gradient is the whole one, and equal optimizers take equal steps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autopart.running.mesh import Seat

__all__ = ["Exchange", "SharedWeights", "Sharing", "exchanges", "sharings"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Processes that sum their gradients of some weights."""

    processes: tuple[int, ...]
    ranks: tuple[int, ...]
    """the device group of each: the gradients of one group, equal or of replicas, count as their mean"""
    names: tuple[str, ...]

    def copies_of(self, process: int) -> int:
        """How many of the processes have the gradient of this one."""
        return self.ranks.count(self.ranks[self.processes.index(process)])


def exchanges(
    shared: tuple[Sharing, ...], seats: tuple[Seat, ...], sharded: Collection[str]
) -> tuple[Exchange, ...]:
    """Who exchanges gradients: all processes of the groups that use a weight, of a sharded one those with equal parts.

    Args:
        shared: the weights that several device groups use, by groups.
        seats: what every process is.
        sharded: names of weights of which every device of a group has a part.
    """
    found = []
    for sharing in shared:
        using = [seat for seat in seats if seat.rank in sharing.stages]
        parts = tuple(name for name in sharing.names if name in sharded)
        whole = tuple(name for name in sharing.names if name not in sharded)
        found += [_exchange(using, whole)] if whole else []
        for tensor in range(using[0].num_tensor) if parts else ():
            found.append(_exchange([seat for seat in using if seat.tensor == tensor], parts))
    return tuple(found)


def _exchange(using: list[Seat], names: tuple[str, ...]) -> Exchange:
    processes, ranks = tuple(seat.process for seat in using), tuple(seat.rank for seat in using)
    return Exchange(processes=processes, ranks=ranks, names=names)


@dataclass(frozen=True, slots=True)
class _Member:
    """This process's part in an exchange."""

    source: int
    group: dist.ProcessGroup
    num_copies: int
    weights: list[torch.Tensor]


class SharedWeights:
    """This rank's part in keeping equal what several ranks hold; stages of one rank hold the same object anyway.

    Making one is collective: every rank of the default group has to, with the same exchanges.

    Args:
        tensors: this process's weights by name.
        exchanges: who exchanges what.
        process: this one.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], exchanges: tuple[Exchange, ...], process: int) -> None:
        groups = [(each, dist.new_group(list(each.processes))) for each in exchanges]
        self._members = [
            _Member(each.processes[0], group, each.copies_of(process), [tensors[name] for name in each.names])
            for each, group in groups
            if process in each.processes
        ]
        self._earlier: list[torch.Tensor | None] = []
        with torch.no_grad():
            for member in self._members:
                for weight in member.weights:
                    dist.broadcast(weight.detach(), src=member.source, group=member.group)

    def set_aside(self) -> None:
        """Before the backward passes: keeps earlier steps' gradients, which are whole already, out of the sum."""
        self._earlier = [weight.grad for weight in self._trainable]
        for weight in self._trainable:
            weight.grad = None

    def wait(self) -> None:
        """Waits until every holder has its gradients, so that the exchange alone can be timed."""
        for member in self._members:
            dist.barrier(group=member.group)

    def exchange(self) -> None:
        """Sums this step's gradients of each shared parameter over its holders, and adds earlier steps'."""
        for member in self._members:
            for weight in member.weights:
                if weight.requires_grad:
                    if weight.grad is None:  # no path to the loss from this stage; its share of the sum is zero
                        weight.grad = torch.zeros_like(weight)
                    if member.num_copies > 1:
                        weight.grad /= member.num_copies
                    dist.all_reduce(weight.grad, group=member.group)
        for weight, earlier in zip(self._trainable, self._earlier, strict=True):
            if earlier is not None and weight.grad is not None:
                weight.grad = earlier.add_(weight.grad)

    @property
    def _trainable(self) -> list[torch.Tensor]:
        return [weight for member in self._members for weight in member.weights if weight.requires_grad]
