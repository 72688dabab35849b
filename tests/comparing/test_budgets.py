from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.comparing.budgets import MOST_DEVICES, read_budget, sets_within, worth_planning
from autopart.errors import UsageError
from autopart.schema.device import Figure, Kind


def figure(value: float) -> Figure:
    return Figure(value=value, source="a data sheet", confidence="high")


def a_kind(name: str, rent: float | None) -> Kind:
    return Kind(
        name=name, vendor="v", architecture="a", year=2024, memory_bytes=figure(1e10),
        bandwidth_bytes_per_second=figure(1e12), peaks=(), link="pcie", host_link="pcie",
        rent_usd_per_hour=None if rent is None else figure(rent),
    )


KINDS = (a_kind("big", 2.0), a_kind("mid", 0.5), a_kind("small", 0.3), a_kind("own", None))


@pytest.mark.parametrize(("text", "budget"), [("budget 2 $/h", 2.0), ("Budget 0.75 usd / h", 0.75)])
def test_budgets_are_read(text: str, budget: float) -> None:
    assert read_budget(text) == budget


@pytest.mark.parametrize("text", ["2 $/h", "budget", "budget 0 $/h", "budget -1 $/h", "budget 2 $", ""])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write for example --catalogue 'budget 2"):
        read_budget(text)


def test_the_sets_of_a_small_budget_are_these() -> None:
    assert [(each.name, each.rent_usd_per_hour) for each in sets_within(0.9, KINDS)] == [
        ("1xsmall", 0.3), ("1xmid", 0.5), ("2xsmall", 0.6), ("1xsmall,1xmid", 0.8), ("3xsmall", pytest.approx(0.9)),
    ]


@given(st.floats(0.3, 30))
def test_every_set_is_within_the_budget_and_differs(budget: float) -> None:
    sets = sets_within(budget, KINDS)
    assert len({each.name for each in sets}) == len(sets)
    for each in sets:
        assert each.rent_usd_per_hour <= budget * (1 + 1e-6)
        assert sum(number for _, number in each.counts) <= MOST_DEVICES and len(each.counts) <= 2


def test_too_little_money_is_an_error_with_the_cheapest() -> None:
    with pytest.raises(UsageError, match=r"the cheapest is small at 0.3 \$/h"):
        sets_within(0.1, KINDS)


def test_the_fastest_and_the_best_per_dollar_come_first() -> None:
    speed = {"big": 25.0, "mid": 10.0, "small": 9.0}.__getitem__
    sets = sets_within(2.0, KINDS)
    chosen = worth_planning(sets, speed, lambda name: 10.0, 0.0, 2)
    assert [each.name for each in chosen] == ["5xsmall,1xmid", "1xsmall"]  # 55 samples/s; 30 per dollar
    (first, *_) = worth_planning(sets, {"big": 99.0, "mid": 10.0, "small": 9.0}.__getitem__, lambda name: 10.0, 0.0, 2)
    assert first.name == "1xbig"


def test_sets_that_cannot_hold_the_weights_are_not_planned() -> None:
    sets = sets_within(0.9, KINDS)
    chosen = worth_planning(sets, lambda name: 1.0, lambda name: 10.0, 20.0, 99)
    assert {each.name for each in chosen} == {"2xsmall", "1xsmall,1xmid", "3xsmall"}
