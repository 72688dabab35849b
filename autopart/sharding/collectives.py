"""What the devices that share a stage's layers tell each other, forward and backward.

A value is *whole* (the same on every device, and so is its gradient) or *sharded* (every device has its part, and the
part's gradient).  Between the two lie four operators, each other's derivatives (the first two are f and g of Shoeybi et
al. 2019, figure 3):

    share    whole, read by sharded computation   identity          backward: sum over the devices
    total    what every device has of a sum     sum               backward: identity
    gather   sharded to whole                      join the parts    backward: own part
    part     whole to sharded                     own part          backward: join the parts
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable

from autopart.sharding.shards import Shard, join_parts, own_part, part_lengths

__all__ = ["Gather", "OwnChance", "OwnPart", "Share", "Team", "Total", "VocabularyPart", "draw_alike", "generator_of"]


@dataclass(frozen=True, slots=True)
class Team:
    """The devices that share a stage's layers, and which of them this one is."""

    group: dist.ProcessGroup | None
    """None: nothing is sent"""
    index: int
    size: int

    def own(self, tensor: torch.Tensor, shard: Shard) -> torch.Tensor:
        """This device's part of a whole tensor."""
        return own_part(tensor, shard, self.size, self.index)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all devices' tensors, a new one."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total

    def join(self, tensor: torch.Tensor, shard: Shard) -> torch.Tensor:
        """The whole tensor whose parts the devices have."""
        lengths = [sum(part_lengths(shard, self.size, index)) for index in range(self.size)]
        room = [nn.functional.pad(tensor, _padding(tensor, shard.dim, max(lengths))).contiguous()]
        room += [torch.empty_like(room[0]) for _ in lengths]
        dist.all_gather(room[1:], room[0], group=self.group)
        return join_parts([each.narrow(shard.dim, 0, n) for each, n in zip(room[1:], lengths, strict=True)], shard)


@dataclass(frozen=True, slots=True)
class Share:
    """Whole, for sharded computation."""

    team: Team
    __name__ = "share"

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """The same value, whose gradient is summed."""
        return _moved(value, _same, self.team.sum)


@dataclass(frozen=True, slots=True)
class Total:
    """A sum whose terms the devices have."""

    team: Team
    __name__ = "total"

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """The sum, whole."""
        return _moved(value, self.team.sum, _same)


@dataclass(frozen=True, slots=True)
class Gather:
    """Shard to whole."""

    team: Team
    shard: Shard
    __name__ = "gather"

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """The whole value."""
        return _moved(value, _joining(self), _parting(self))


@dataclass(frozen=True, slots=True)
class OwnPart:
    """Whole to shard."""

    team: Team
    shard: Shard
    __name__ = "own_part"

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """This device's part."""
        return _moved(value, _parting(self), _joining(self))


@dataclass(frozen=True, slots=True)
class VocabularyPart:
    """An embedding whose rows are sharded (Shoeybi et al. 2019, section 3): each device looks up those it has."""

    team: Team
    num_rows: int
    __name__ = "vocabulary_part"

    def __call__(
        self, weight: torch.Tensor, indices: torch.Tensor, padding_idx: int = -1, scale: bool = False,
        sparse: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """The rows, whole: those of other devices' parts are zero here, and all are summed."""
        start = sum(part_lengths(Shard(0, (self.num_rows,)), self.team.size, i)[0] for i in range(self.team.index))
        local = indices - start
        elsewhere = (local < 0) | (local >= weight.shape[0])
        padding = padding_idx - start if 0 <= padding_idx - start < weight.shape[0] else None
        rows = nn.functional.embedding(local.masked_fill(elsewhere, 0), weight, padding, None, 2.0, scale, sparse)
        return Total(self.team)(rows.masked_fill(elsewhere.unsqueeze(-1), 0.0))


@dataclass(frozen=True, slots=True)
class OwnChance:
    """A random operator on sharded values: every device draws numbers of its own, and none falls out of step."""

    team: Team
    operator: Callable[..., Any]
    __name__ = "own_chance"

    def __call__(self, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the operator gives with this device's random numbers."""
        with draw_alike(int(torch.randint(2**62, ())) + self.team.index, value.device):
            return self.operator(value, *args, **kwargs)


class draw_alike:  # noqa: N801 (a context manager, read as a verb)
    """Within, random numbers on a device come from a seed; after it, from where they would have come."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._generators = seed, {id(g): g for g in (torch.default_generator, generator_of(device))}

    def __enter__(self) -> None:
        self._states = [generator.get_state() for generator in self._generators.values()]
        for generator in self._generators.values():
            generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        for generator, state in zip(self._generators.values(), self._states, strict=True):
            generator.set_state(state)


def generator_of(device: torch.device) -> torch.Generator:
    """Where random numbers on a device come from."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


Move = Callable[[torch.Tensor], torch.Tensor]


class _Apply(torch.autograd.Function):
    """One function forward, another backward."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, forth: Move, back: Move) -> torch.Tensor:
        ctx.back = back
        return forth(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.back(gradient), None, None


def _same(value: torch.Tensor) -> torch.Tensor:
    return value.view_as(value)


def _moved(value: torch.Tensor, forth: Move, back: Move) -> torch.Tensor:
    result: torch.Tensor = _Apply.apply(value, forth, back)  # type: ignore[no-untyped-call]
    return result


def _joining(message: Gather | OwnPart) -> Move:
    return lambda value: message.team.join(value, message.shard)


def _parting(message: Gather | OwnPart) -> Move:
    return lambda value: message.team.own(value, message.shard)


def _padding(tensor: torch.Tensor, dim: int, length: int) -> tuple[int, ...]:
    """For ``nn.functional.pad``, which counts dimensions from the back."""
    return (0, 0) * (tensor.dim() - 1 - dim) + (0, length - tensor.shape[dim])
