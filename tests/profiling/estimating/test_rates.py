from __future__ import annotations

import pytest

from autopart.profiling.devices.catalogue import kind, kinds
from autopart.profiling.estimating.rates import rates_of, steady
from autopart.schema.device import Kind


@pytest.mark.parametrize("one", kinds(), ids=lambda one: one.name)
@pytest.mark.parametrize("dtype", ["float32", "tf32", "float16", "bfloat16", "float64", "float8_e5m2", "int8", "bool"])
def test_every_kind_knows_every_type(one: Kind, dtype: str) -> None:
    rate = rates_of(one).rate(dtype)
    assert 1e9 < rate.sustained <= rate.burst < 1e16
    if dtype in ("float32", "float64", "int8"):
        assert (rate.note == "") == (dtype in {peak.dtype for peak in one.peaks})


@pytest.mark.parametrize("name", ["t4", "l4", "a10", "p4"])
def test_power_limits_small_cards(name: str) -> None:
    rate = rates_of(kind(name)).rate("float32")
    assert rate.sustained < 0.8 * rate.burst
    assert steady(rates_of(kind(name))).rate("float32").burst == rate.sustained


def test_full_power_cards_are_not_limited() -> None:
    for name in ("a100-sxm-80gb", "h100-sxm-80gb", "v100-sxm-32gb", "rtx-4090"):
        rate = rates_of(kind(name)).rate("float16")
        assert rate.sustained == rate.burst


def test_matrix_units() -> None:
    assert rates_of(kind("v100-sxm-16gb")).rate("float16").on_matrix_units
    assert not rates_of(kind("v100-sxm-16gb")).rate("float32").on_matrix_units
    assert not rates_of(kind("v100-sxm-16gb")).rate("bfloat16").on_matrix_units  # runs as float32
    assert not rates_of(kind("p100-pcie-16gb")).rate("float16").on_matrix_units


def test_architecture_factors_can_be_left_out() -> None:
    p100 = kind("p100-pcie-16gb")
    with_factors, without = rates_of(p100), rates_of(p100, architecture_factors=False)
    assert with_factors.rate("float32").sustained < without.rate("float32").sustained == 9.3e12
    assert with_factors.bytes_per_second < without.bytes_per_second == 732e9


def test_a_silent_data_sheet_has_its_units_guessed() -> None:
    assert kind("gaudi3").num_units is None
    assert rates_of(kind("gaudi3")).num_units > 100
    assert rates_of(kind("a100-sxm-80gb")).num_units == 108
