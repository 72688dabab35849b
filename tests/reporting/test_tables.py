from __future__ import annotations

import pytest

from autopart.reporting.tables import layer_range, percent, rate, table, usd


@pytest.mark.parametrize(("layers", "text"), [
    (("a",), "a"), (("a", "b"), "a … b (2)"), (("h.0", "h.1", "h.2"), "h.0 … h.2 (3)"),
])
def test_layer_range(layers: tuple[str, ...], text: str) -> None:
    assert layer_range(layers) == text


@pytest.mark.parametrize(("samples_per_second", "text"), [
    (0.5, "0.5 samples/s"), (12.345, "12.3 samples/s"), (999.4, "999 samples/s"), (1600.0, "1.60k samples/s"),
])
def test_rate(samples_per_second: float, text: str) -> None:
    assert rate(samples_per_second) == text


def test_percent() -> None:
    assert percent(0.5) == "50.0 %" and percent(0.051, signed=True) == "+5.1 %" and percent(0.876, digits=0) == "88 %"


def test_a_table_without_rows_still_has_its_headers() -> None:
    assert table(("one", "two"), []).split() == ["one", "two", "-----", "-----"]


def test_small_prices_keep_their_digits() -> None:
    assert [usd(amount) for amount in (1234.5, 0.41, 0.000373, 0.0)] == ["1234.50", "0.41", "0.000373", "0"]
