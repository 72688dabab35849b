from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart import units
from autopart.errors import UsageError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("20GiB", 20 * 2**30),
        ("21GB", 21 * 10**9),
        ("512MiB", 512 * 2**20),
        ("512 mib", 512 * 2**20),
        ("1.5 kB", 1500),
        (".5GB", 5 * 10**8),
        ("1e9", 10**9),
        ("2e1GB", 2 * 10**10),
        (4096, 4096),
        ("7B", 7),
    ],
)
def test_reads_sizes(text: str | int, num_bytes: int) -> None:
    assert units.parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("80us", 80e-6), ("5us", 5e-6), ("80 µs", 80e-6), ("3 ms", 3e-3), ("1.5s", 1.5), (2, 2.0), ("2min", 120.0)],
)
def test_reads_times(text: str | int, seconds: float) -> None:
    assert units.parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("25GB/s", 25e9), ("10Gbit/s", 1.25e9), ("10Gbps", 1.25e9), ("1GBps", 1e9), ("8 gbit/s", 1e9), ("1GiB/s", 2**30)],
)
def test_reads_bandwidths(text: str, bytes_per_second: float) -> None:
    assert units.parse_bytes_per_second(text) == bytes_per_second


@pytest.mark.parametrize(("text", "flops"), [("82.6 TFLOPS", 82.6e12), ("10e12", 1e13), (5e12, 5e12)])
def test_reads_compute_rates(text: str | float, flops: float) -> None:
    assert units.parse_flops_per_second(text) == pytest.approx(flops, rel=1e-12)


@pytest.mark.parametrize("read", [units.parse_bytes, units.parse_seconds, units.parse_bytes_per_second])
@pytest.mark.parametrize("text", ["", "GB", "-5GB", "5 XB", "nan", "inf", "0", "0s", "1e999", "1,5GB", "ten", -3, 0])
def test_refuses_nonsense_in_one_line(read: object, text: str | int) -> None:
    assert callable(read)
    with pytest.raises(UsageError) as refused:
        read(text)
    assert "\n" not in str(refused.value) and "; write " in str(refused.value) and repr(text) in str(refused.value)


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -1.0])
def test_refuses_odd_numbers(value: float) -> None:
    with pytest.raises(UsageError):
        units.parse_bytes(value)


def test_refuses_what_may_be_bits_or_bytes() -> None:
    with pytest.raises(UsageError):
        units.parse_bytes_per_second("10gbps")


def test_refuses_less_than_a_byte() -> None:
    with pytest.raises(UsageError, match="less than one byte"):
        units.parse_bytes("0.2B")


def test_zero_seconds_only_where_allowed() -> None:
    assert units.parse_seconds("0us", zero_allowed=True) == 0
    with pytest.raises(UsageError):
        units.parse_seconds("0us")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_950_000, "1.00 GB"), (-1.2e9, "-1.20 GB")],
)
def test_prints_sizes(num_bytes: float, text: str) -> None:
    assert units.format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (80e-6, "80.0 us"), (0.9999, "1.00 s"), (59.99, "1.00 min"), (7200, "2.00 h"), (math.inf, "inf")],
)
def test_prints_times(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@given(st.integers(min_value=1, max_value=10**17))
def test_a_printed_size_reads_back(num_bytes: int) -> None:
    assert units.parse_bytes(units.format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=6e-3)


@given(st.floats(min_value=1e-9, max_value=1e7))
def test_a_printed_time_reads_back(seconds: float) -> None:
    assert units.parse_seconds(units.format_seconds(seconds)) == pytest.approx(seconds, rel=6e-3)


@given(st.floats(min_value=1.0, max_value=1e17))
def test_a_printed_rate_reads_back(rate: float) -> None:
    assert units.parse_bytes_per_second(units.format_rate(rate)) == pytest.approx(rate, rel=6e-3)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(units).failed == 0 < doctest.testmod(units).attempted
