from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices
from autopart.planning.graphs.dagpacking import packing_bound
from autopart.planning.graphs.dagproblem import DagProblem, DeviceKind
from tests.planning.graphs.test_dagsplit import assignments, problems, value


def items(times: list[float], *, accelerators: int, slower: float = math.inf) -> DagProblem:
    """Items to pack on accelerators and one slower device, with nothing between them."""
    kinds = (
        DeviceKind(name="accelerator", count=accelerators, capacity_bytes=math.inf),
        DeviceKind(name="cpu", count=int(math.isfinite(slower)), capacity_bytes=math.inf, transfer_factor=0.0),
    )
    return DagProblem(
        kinds=kinds, times=(tuple(times), tuple(time * slower for time in times)), sizes=(0.0,) * len(times), nets=(),
        precedence=(), members=tuple((item,) for item in range(len(times))),
    )


def balance(problem: DagProblem) -> float:
    return balance_bound(problem, balance_prices(problem))


@settings(deadline=None, max_examples=25)
@given(problem=problems(most_items=6))
def test_no_placement_is_below(problem: DagProblem) -> None:
    problem = replace(problem, kinds=(replace(problem.kinds[0], count=2), replace(problem.kinds[1], count=1)))
    best = min(value(problem, parts) for parts in assignments(problem))
    low = balance(problem)
    found = packing_bound(problem, low, 2 * best if math.isfinite(best) else 100.0)
    assert low <= found
    assert found <= best * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("num_items", [25, 29, 30])
def test_equal_items_come_in_whole_numbers(num_items: int) -> None:
    """Six devices: five items on one of them, whatever the balance says."""
    problem = items([2.0] * num_items, accelerators=6)
    assert balance(problem) == pytest.approx(num_items / 3)
    assert packing_bound(problem, balance(problem), 20.0) == pytest.approx(10.0, rel=2e-4)


def test_what_is_proven_is_no_more_than_asked_for() -> None:
    problem = items([2.0] * 25, accelerators=6)
    assert packing_bound(problem, balance(problem), 9.0) == 9.0


def test_a_slow_device_takes_whole_items_only() -> None:
    """By shares the slow device would take a tenth of a device's work; it can take none of the large items."""
    problem = items([8.3] * 24 + [3.6, 6.4], accelerators=6, slower=10.0)
    found = packing_bound(problem, balance(problem), 40.0)
    assert balance(problem) < 35.7
    assert found == pytest.approx(4 * 8.3 + 6.4, rel=1e-3)


def test_many_small_items_are_left_to_the_balance() -> None:
    problem = items([0.1] * 200, accelerators=6)
    assert packing_bound(problem, 3.0, 4.0) == 3.0


def test_out_of_time_the_known_bound_is_kept() -> None:
    problem = items([2.0] * 25, accelerators=6)
    assert packing_bound(problem, 3.0, 20.0, out_of_time=lambda: True) == 3.0
