"""How a tensor is sharded over the devices that share a stage's layers, and what reshaping makes of that.

Shapes only: no communication here.  A device has its part of every *section* of one dimension.  One section is the
ordinary case; three are what a fused projection to queries, keys and values needs, of which every device has some of
each.  Parts are those of ``torch.chunk``: the last may be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["Shard", "join_parts", "own_part", "part_lengths", "resectioned", "reshaped"]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shard:
    """A dimension sharded in sections, each over all devices of the team."""

    dim: int
    """from the front"""
    sections: tuple[int, ...]
    """sizes, adding up to the dimension's"""

    def at(self, dim: int) -> Shard:
        """The same shard of another dimension."""
        return Shard(dim, self.sections)

    def is_even(self, num_devices: int) -> bool:
        """Whether all devices have as much."""
        return all(section % num_devices == 0 for section in self.sections)


def part_lengths(shard: Shard, num_devices: int, index: int) -> tuple[int, ...]:
    """How much of every section a device has.

    >>> part_lengths(Shard(0, (5, 4)), 2, 1)
    (2, 2)
    """
    return tuple(_span(section, num_devices, index)[1] for section in shard.sections)


def own_part(tensor: torch.Tensor, shard: Shard, num_devices: int, index: int) -> torch.Tensor:
    """What a device has of a whole tensor; contiguous, never a view of it."""
    pieces, offset = [], 0
    for section in shard.sections:
        start, length = _span(section, num_devices, index)
        pieces.append(tensor.narrow(shard.dim, offset + start, length))
        offset += section
    return torch.cat(pieces, shard.dim)


def join_parts(parts: Sequence[torch.Tensor], shard: Shard) -> torch.Tensor:
    """The whole tensor, from what every device has."""
    if len(shard.sections) == 1:
        return torch.cat(tuple(parts), shard.dim)
    lengths = [list(part_lengths(shard, len(parts), index)) for index in range(len(parts))]
    pieces = [torch.split(part, each, shard.dim) for part, each in zip(parts, lengths, strict=True)]
    return torch.cat([piece for column in zip(*pieces, strict=True) for piece in column], shard.dim)


def reshaped(shard: Shard, before: Shape, after: Shape, num_devices: int) -> Shard | None:
    """The shard of a tensor of shape ``before`` when it has been given the shape ``after``; None: it is none.

    >>> reshaped(Shard(2, (768,)), (2, 5, 768), (2, 5, 12, 64), 2)
    Shard(dim=2, sections=(12,))
    >>> reshaped(Shard(1, (768, 768, 768)), (5, 2304), (5, 3, 12, 64), 2)
    Shard(dim=2, sections=(12,))
    """
    if not shard.is_even(num_devices) or 0 in before:
        return None
    (old, new) = next(pair for pair in _alike(before, after) if shard.dim in pair[0])
    leading = math.prod(before[d] for d in old if d < shard.dim)
    trailing = math.prod(before[d] for d in old if d > shard.dim)
    flat = tuple(section * trailing for _ in range(leading) for section in shard.sections)
    for dim in new:
        leading = math.prod(after[d] for d in new if d < dim)
        trailing = math.prod(after[d] for d in new if d > dim)
        once = flat[: max(1, len(flat) // leading)]
        sections = tuple(section // trailing for section in once)
        exact = sum(sections) == after[dim] and tuple(s * trailing for _ in range(leading) for s in sections) == flat
        if exact and Shard(dim, sections).is_even(num_devices):
            return Shard(dim, sections)
    return None


def resectioned(shard: Shard, sizes: Sequence[int]) -> tuple[tuple[int, ...], ...] | None:
    """The sections in each piece when the sharded dimension is split at ``sizes``; None: a piece has not whole ones.

    >>> resectioned(Shard(1, (8, 8, 4)), (8, 12))
    ((8,), (8, 4))
    """
    left, found = list(shard.sections), []
    for size in sizes:
        piece: list[int] = []
        while left and sum(piece) < size:
            piece.append(left.pop(0))
        if sum(piece) != size:
            return None
        found.append(tuple(piece))
    return tuple(found)


def _span(section: int, num_devices: int, index: int) -> tuple[int, int]:
    """Start and length of a device's part."""
    each = -(-section // num_devices)
    start = min(index * each, section)
    return start, min(each, section - start)


def _alike(before: Shape, after: Shape) -> list[tuple[range, range]]:
    """Runs of dimensions of both shapes that hold the same elements, as short as they can be."""
    found = []
    i = j = 0
    while i < len(before) or j < len(after):
        first, second = i, j
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while (old := math.prod(before[first:i])) != (new := math.prod(after[second:j])):
            if old < new:
                i += 1
            else:
                j += 1
        found.append((range(first, i), range(second, j)))
    return found
