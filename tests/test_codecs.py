from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.codecs import CODECS
from autopart.schema.codec import CodecName, layout, num_kept, wire_bytes

NAMES: tuple[CodecName, ...] = ("fp16", "bf16", "int8", "topk")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TINY = 1e-37
"""below it scales are not normal numbers"""

shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple) | st.sampled_from([(3, 70), (2, 5, 64), (300,)])


def made(shape: tuple[int, ...], seed: int, magnitude: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * magnitude).to(dtype)


def passed(name: CodecName, tensor: torch.Tensor) -> torch.Tensor:
    codec = CODECS[name]
    return codec.decode(codec.encode(tensor), tensor.shape, tensor.dtype)


def bound(name: CodecName, tensor: torch.Tensor) -> torch.Tensor:
    """The table at the head of codecs.py."""
    sizes = tensor.double().abs()
    if name == "int8":
        num_rows, length = layout(tensor.shape)
        flat = torch.nn.functional.pad(sizes.reshape(-1), (0, num_rows * length - sizes.numel()))
        largest = flat.view(num_rows, length).amax(1, keepdim=True).expand(-1, length)
        return largest.reshape(-1)[: sizes.numel()].view(sizes.shape) / 252 * (1 + 1e-5) + TINY
    if name == "fp16":
        return sizes / 2**11 + 2**-25 + (sizes - 65504).clamp(min=0)
    return sizes / 2**8 + TINY


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(("fp16", "bf16", "int8")), shape=shapes, seed=st.integers(0, 9),
       exponent=st.integers(-30, 30))
def test_no_element_errs_by_more_than_is_said(
    name: CodecName, shape: tuple[int, ...], seed: int, exponent: int
) -> None:
    tensor = made(shape, seed, 10.0**exponent)
    assert ((passed(name, tensor).double() - tensor.double()).abs() <= bound(name, tensor)).all()


@settings(deadline=None, max_examples=30)
@given(shape=shapes, seed=st.integers(0, 9))
def test_topk_keeps_the_largest_of_every_row_and_nothing_else(shape: tuple[int, ...], seed: int) -> None:
    tensor = made(shape, seed, 1.0)
    num_rows, length = layout(shape)
    found = passed("topk", tensor)
    kept = found != 0
    assert (found - tensor)[kept].abs().le(tensor[kept].abs() / 2**8).all()
    assert kept.sum() <= num_rows * num_kept(length)
    if tensor.numel() and tensor.numel() % length == 0:
        rows, theirs = tensor.view(num_rows, length).abs(), kept.view(num_rows, length)
        smallest_kept = rows.masked_fill(~theirs, math.inf).amin(1)
        assert (rows.masked_fill(theirs, 0.0).amax(1) <= smallest_kept).all()


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(NAMES), shape=shapes, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9))
def test_wires_are_floating_contiguous_and_as_large_as_planned(
    name: CodecName, shape: tuple[int, ...], dtype: torch.dtype, seed: int
) -> None:
    tensor = made(shape, seed, 1.0, dtype)
    wire = CODECS[name].encode(tensor)
    assert wire.is_floating_point() and wire.is_contiguous()
    assert wire.nbytes == wire_bytes(name, shape, tensor.element_size())
    on_paper = CODECS[name].encode(tensor.to("meta"))
    assert (on_paper.shape, on_paper.dtype) == (wire.shape, wire.dtype)
    found = CODECS[name].decode(wire, shape, dtype)
    assert (found.shape, found.dtype) == (tensor.shape, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_strides_do_not_matter(name: CodecName) -> None:
    tensor = made((6, 5, 80), 1, 1.0)
    for strided in (tensor.transpose(0, 1), tensor[::2], tensor[..., 3:], tensor[:1].expand(4, 5, 80)):
        assert not strided.is_contiguous()
        torch.testing.assert_close(passed(name, strided), passed(name, strided.contiguous()), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_is_still_so_and_the_rest_is_not_touched(name: CodecName) -> None:
    tensor = made((3, 100), 2, 1.0)
    tensor[1, 4], tensor[1, 50], tensor[1, 99] = math.nan, math.inf, -math.inf
    found = passed(name, tensor)
    assert found[1, 4].isnan() and found[1, 50] == math.inf and found[1, 99] == -math.inf
    assert found.isfinite().sum() == 297
    finite = tensor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    if name != "topk":
        assert ((found - finite)[tensor.isfinite()].abs() <= bound(name, finite)[tensor.isfinite()]).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_numbers_stay_finite(name: CodecName) -> None:
    most = torch.finfo(torch.float32).max
    tensor = torch.tensor([[-most, 0.0, most] * 30])
    found = passed(name, tensor)
    assert found.isfinite().all()
    assert found[0, 0] <= -65504 or name == "topk"


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(NAMES), seed=st.integers(0, 99))
def test_garbage_on_the_wire_gives_a_tensor_of_the_right_shape(name: CodecName, seed: int) -> None:
    wire = CODECS[name].encode(torch.ones(3, 2, 70))
    generator = torch.Generator().manual_seed(seed)
    garbage = torch.randint(-(2**15), 2**15, (wire.nbytes // 2,), generator=generator, dtype=torch.int16)
    found = CODECS[name].decode(garbage.view(wire.dtype).view(wire.shape), (3, 2, 70), torch.float32)
    assert found.shape == (3, 2, 70)


@pytest.mark.parametrize("name", ("fp16", "bf16", "topk"))
def test_a_value_that_passed_a_cut_passes_the_next_unchanged(name: CodecName) -> None:
    once = passed(name, made((4, 96), 3, 1.0))
    assert torch.equal(passed(name, once), once)


def test_int8_at_the_next_cut_loses_no_more_than_rounding_of_the_scale() -> None:
    once = passed("int8", made((4, 96), 3, 1.0))
    torch.testing.assert_close(passed("int8", once), once, rtol=1e-5, atol=0)
