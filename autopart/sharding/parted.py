"""Tensors of which every device of a team has a part, joined to whole ones and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from autopart.sharding.collectives import Team
from autopart.sharding.shards import Shard

__all__ = ["Parted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """Which of a process's weights are parts, and of what; their gradients are parted as they are."""

    team: Team | None = None
    shards: Mapping[str, Shard] = field(default_factory=dict)
    """by the weight's name; all others are whole"""

    def join(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The whole tensor, of what the devices have; collective among them if the weight is parted."""
        return tensor if self.team is None or name not in self.shards else self.team.join(tensor, self.shards[name])

    def own(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """This device's part of a whole tensor."""
        return tensor if self.team is None or name not in self.shards else self.team.own(tensor, self.shards[name])

    def room(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What the whole tensor can be read into: ``tensor`` itself, unless it is a part."""
        if name not in self.shards:
            return tensor
        shard, shape = self.shards[name], list(tensor.shape)
        shape[shard.dim] = sum(shard.sections)
        return tensor.new_empty(shape)
