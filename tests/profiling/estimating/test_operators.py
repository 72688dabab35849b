from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.profiling.devices.catalogue import kind
from autopart.profiling.estimating.laws import shipped_laws
from autopart.profiling.estimating.operators import gradients, seconds
from autopart.profiling.estimating.rates import rates_of, steady
from autopart.schema.graph import Work


def product(*shape: int, dtype: str = "float32") -> Work:
    batch, m, n, k = shape
    size = 4 if dtype == "float32" else 2
    return Work(
        family="gemm",
        dtype=dtype,
        num_calls=1,
        flops=2 * batch * m * n * k,
        traffic_bytes=size * batch * (m * k + k * n + m * n),
        operator="mm",
        shape=shape,
    )


def convolution(samples: int, channels: int, side: int, kernel: int, groups: int = 1, dtype: str = "float32") -> Work:
    pixels = side * side
    return Work(
        family="convolution",
        dtype=dtype,
        num_calls=1,
        flops=2 * samples * pixels * channels * channels * kernel // groups,
        traffic_bytes=4 * (2 * samples * pixels * channels + channels * channels * kernel // groups),
        operator="convolution",
        shape=(samples, channels, channels, pixels, pixels, kernel, groups),
    )


def time(work: Work, name: str = "a100-sxm-80gb") -> float:
    return float(seconds([work], steady(rates_of(kind(name))), shipped_laws())[0])


@pytest.mark.parametrize(
    "name, dtype, fraction",
    [
        ("t4", "float32", 0.42),
        ("v100-pcie-32gb", "float32", 0.88),
        ("a100-pcie-80gb", "float32", 0.90),
        ("p100-pcie-16gb", "float32", 0.66),
        ("v100-sxm-16gb", "float16", 0.70),
        ("a100-sxm-40gb", "float16", 0.75),
        ("titan-rtx", "float16", 0.66),
    ],
)
def test_a_large_product_reaches_what_was_measured(name: str, dtype: str, fraction: float) -> None:
    large = product(1, 8192, 8192, 8192, dtype=dtype)
    peak = next(peak.flops_per_second.value for peak in kind(name).peaks if peak.dtype == dtype)
    assert large.flops / time(large, name) / peak == pytest.approx(fraction, rel=0.15)


def test_a_product_of_few_tiles_leaves_units_idle() -> None:
    whole = product(1, 128 * 12, 128 * 9, 4096)  # 108 tiles of 128 x 128 on 108 multiprocessors
    ragged = product(1, 128 * 12 + 1, 128 * 9 + 1, 4096)
    narrow = product(1, 16, 16, 4096)
    assert time(whole) < time(ragged)
    assert time(narrow) / narrow.flops > 10 * time(whole) / whole.flops


@given(
    st.sampled_from(["float32", "float16", "tf32"]),
    st.integers(1, 64),
    st.integers(1, 8192),
    st.integers(1, 8192),
    st.integers(1, 8192),
)
def test_more_of_the_batch_never_takes_less(dtype: str, batch: int, m: int, n: int, k: int) -> None:
    assert time(product(batch, m, n, k, dtype=dtype)) <= time(product(2 * batch, m, n, k, dtype=dtype)) * (1 + 1e-9)


def test_three_by_three_beats_the_peak_and_large_kernels_do_not() -> None:
    name = "v100-pcie-32gb"
    peak = 14e12
    winograd, seven = convolution(32, 512, 28, 9), convolution(32, 512, 28, 49)
    assert winograd.flops / time(winograd, name) > 0.95 * peak
    assert seven.flops / time(seven, name) < peak


def test_a_depthwise_convolution_is_bound_by_memory() -> None:
    depthwise = convolution(64, 256, 56, 9, groups=256)
    assert time(depthwise) >= depthwise.traffic_bytes / 2039e9


def test_tf32_and_half_types_are_faster_where_there_are_matrix_units() -> None:
    full, tf32, half = (product(1, 4096, 4096, 4096, dtype=dtype) for dtype in ("float32", "tf32", "float16"))
    assert time(full) > 4 * time(tf32) > 4 * time(half)
    assert time(tf32, "p100-pcie-16gb") == pytest.approx(time(full, "p100-pcie-16gb"), rel=0.1)


def test_a_softmax_over_long_rows_reads_them_again() -> None:
    short = Work(
        family="softmax", dtype="float32", num_calls=1, flops=0, traffic_bytes=2**30, operator="_softmax",
        shape=(2**17, 1024),
    )  # fmt: skip
    assert time(dataclasses.replace(short, shape=(2**16, 2048))) > 1.2 * time(short)


def test_the_gradients_of_a_product_are_products() -> None:
    forward = product(2, 30, 40, 50)
    of_input, of_weight = gradients(forward, of_inputs=True, of_weights=True)
    assert of_input.shape == (2, 30, 50, 40)  # dY · Wᵀ
    assert of_weight.shape == (2, 50, 40, 30)  # Xᵀ · dY
    assert of_input.flops == of_weight.flops == forward.flops
    assert gradients(forward, of_inputs=False, of_weights=True) == (of_weight,)
    assert gradients(forward, of_inputs=False, of_weights=False) == ()


@pytest.mark.parametrize("operator, num_read, factor", [("add", 2, 0), ("mul", 1, 1), ("mul", 2, 2), ("gelu", 1, 1.5)])
def test_the_traffic_of_elementwise_gradients(operator: str, num_read: int, factor: float) -> None:
    forward = Work(
        family="elementwise", dtype="float32", num_calls=1, flops=0, traffic_bytes=10**9, operator=operator,
        shape=(num_read, 10**8),
    )  # fmt: skip
    assert sum(one.traffic_bytes for one in gradients(forward, of_inputs=True, of_weights=False)) == factor * 10**9


def test_calls_add_up() -> None:
    once = product(1, 512, 512, 512)
    thrice = dataclasses.replace(once, num_calls=3, flops=3 * once.flops, traffic_bytes=3 * once.traffic_bytes)
    assert time(thrice) == pytest.approx(3 * time(once))
