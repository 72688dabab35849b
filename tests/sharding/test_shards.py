from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.sharding.shards import Shard, join_parts, own_part, part_lengths, resectioned, reshaped

sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@st.composite
def sharded(draw: st.DrawFn) -> tuple[torch.Tensor, Shard, int]:
    """A tensor, how it is sharded, and over how many devices."""
    shape, num_devices = draw(sizes), draw(st.integers(2, 4))
    dim = draw(st.integers(0, len(shape) - 1))
    sections = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    shape[dim] = sum(sections)
    return torch.arange(math.prod(shape)).reshape(shape), Shard(dim, sections), num_devices


@settings(deadline=None)
@given(sharded())
def test_parts_join_to_the_whole(case: tuple[torch.Tensor, Shard, int]) -> None:
    whole, shard, num_devices = case
    parts = [own_part(whole, shard, num_devices, index) for index in range(num_devices)]
    assert torch.equal(join_parts(parts, shard), whole)
    for index, part in enumerate(parts):
        assert part.shape[shard.dim] == sum(part_lengths(shard, num_devices, index))


@settings(deadline=None)
@given(st.data())
def test_to_reshape_a_part_is_to_take_a_part_of_the_reshaped(data: st.DataObject) -> None:
    num_devices = data.draw(st.sampled_from([2, 3]))
    factors = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=5))
    before, after = (grouped(data, factors) for _ in range(2))
    dim = data.draw(st.integers(0, len(before) - 1))
    num_sections = data.draw(st.sampled_from([each for each in (1, 2, 3) if before[dim] % each == 0]))
    shard = Shard(dim, (before[dim] // num_sections,) * num_sections)
    found = reshaped(shard, before, after, num_devices)
    if found is None:
        return
    whole = torch.arange(math.prod(before)).reshape(before)
    for index in range(num_devices):
        part = own_part(whole.reshape(after), found, num_devices, index)
        assert torch.equal(own_part(whole, shard, num_devices, index).reshape(part.shape), part)


def grouped(data: st.DataObject, factors: list[int]) -> tuple[int, ...]:
    """A shape of as many elements: neighbouring factors multiplied or not."""
    shape = [factors[0]]
    for factor in factors[1:]:
        if data.draw(st.booleans()):
            shape[-1] *= factor
        else:
            shape.append(factor)
    return tuple(shape)


def test_heads_are_found_where_they_are() -> None:
    assert reshaped(Shard(2, (768,)), (2, 5, 768), (2, 5, 12, 64), 2) == Shard(2, (12,))
    assert reshaped(Shard(1, (768,) * 3), (5, 2304), (5, 3, 12, 64), 2) == Shard(2, (12,))
    assert reshaped(Shard(2, (12,)), (2, 5, 12, 64), (2, 5, 768), 4) == Shard(2, (768,))
    assert reshaped(Shard(1, (4,)), (2, 4, 3, 8), (2, 12, 8), 2) == Shard(1, (12,)), "grouped heads, repeated"
    assert reshaped(Shard(2, (768,)), (2, 5, 768), (2, 5, 3, 256), 2) is None, "three heads, two devices"
    assert reshaped(Shard(1, (19,)), (5, 19), (5, 19, 1), 2) is None, "uneven"


def test_sections_are_dealt_to_pieces() -> None:
    assert resectioned(Shard(0, (8, 8, 8)), (8, 16)) == ((8,), (8, 8))
    assert resectioned(Shard(0, (24,)), (8, 16)) is None
    assert resectioned(Shard(0, (8, 8)), (0, 8, 8)) == ((), (8,), (8,))
