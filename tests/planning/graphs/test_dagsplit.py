"""Against brute force: every chain of ideals, every assignment, on small graphs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices, simple_prices
from autopart.planning.graphs.dagideals import all_ideals, family_of, ideals_near, prefixes
from autopart.planning.graphs.dagorders import ORDERS, topological_order
from autopart.planning.graphs.dagplan import contiguous, largest_load
from autopart.planning.graphs.dagproblem import DagProblem, DeviceKind, Net, Part, part_bytes, part_load
from autopart.planning.graphs.dagsplit import OutOfTime, best_split
from autopart.planning.graphs.workload import problem_of
from tests.planning.workloads import lstm_grid


@st.composite
def problems(draw: st.DrawFn, most_items: int = 6) -> DagProblem:
    """Small problems with two kinds, transfers that one kind does not pay, and caps that may bind."""
    num_items = draw(st.integers(1, most_items))
    pairs = [(a, b) for a in range(num_items) for b in range(a + 1, num_items)]
    precedence = tuple(pair for pair in pairs if draw(st.booleans()))
    time = st.sampled_from((0.0, 1.0, 2.5, 4.0))
    fast = [draw(time) for _ in range(num_items)]
    slow = [draw(st.sampled_from((0.0, 2.0, 9.0, math.inf))) for _ in range(num_items)]
    nets = [draw(st.sets(st.integers(0, num_items - 1), min_size=2)) for _ in range(4)] if num_items > 1 else []
    capacity = draw(st.sampled_from((3.0, 5.0, math.inf)))
    return DagProblem(
        kinds=(
            DeviceKind(name="fast", count=draw(st.integers(1, 3)), capacity_bytes=capacity),
            DeviceKind(name="slow", count=draw(st.integers(0, 2)), capacity_bytes=math.inf, transfer_factor=0.5),
        ),
        times=(tuple(fast), tuple(slow)), sizes=tuple(draw(st.sampled_from((0.0, 1.0, 2.0))) for _ in fast),
        nets=tuple(Net(pins=tuple(sorted(pins)), cost=draw(st.sampled_from((0.5, 1.0, 3.0)))) for pins in nets),
        precedence=precedence, members=tuple((item,) for item in range(num_items)),
    )


def value(problem: DagProblem, parts: tuple[Part, ...]) -> float:
    """Largest load; inf if it does not fit."""
    fits = all(part_bytes(problem, part) <= problem.kinds[part.kind].capacity_bytes for part in parts)
    return largest_load(problem, parts) if fits and parts else math.inf


def assignments(problem: DagProblem) -> Iterator[tuple[Part, ...]]:
    """Every assignment of items to devices."""
    devices = [g for g, kind in enumerate(problem.kinds) for _ in range(kind.count)]
    for choice in itertools.product(range(len(devices)), repeat=problem.num_items):
        yield tuple(
            Part(kind=g, items=tuple(item for item, d in enumerate(choice) if d == device))
            for device, g in enumerate(devices) if device in choice
        )


def after(turns: int) -> Callable[[], bool]:
    """An end of the time that comes when it has been asked for so often."""
    asked = itertools.count()
    return lambda: next(asked) >= turns


def is_contiguous(problem: DagProblem, parts: tuple[Part, ...]) -> bool:
    """Whether the parts have an order that respects the precedence; all orders are tried."""
    for order in itertools.permutations(parts):
        rank = {item: number for number, part in enumerate(order) for item in part.items}
        if rank and all(rank[a] <= rank[b] for a, b in problem.precedence):
            return True
    return False


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_contiguous_is_as_good_as_brute_force(problem: DagProblem) -> None:
    if sum(kind.count for kind in problem.kinds) > 3 and problem.num_items > 5:
        problem = replace(problem, kinds=(problem.kinds[0], replace(problem.kinds[1], count=0)))
    best = min(value(problem, parts) for parts in assignments(problem) if is_contiguous(problem, parts))
    found = contiguous(problem, out_of_time=lambda: False)
    parts = tuple(Part(kind=kind, items=nodes) for kind, nodes in found.parts)
    assert found.objective == pytest.approx(best)
    assert found.bound == pytest.approx(best)
    assert value(problem, parts) == pytest.approx(best)
    assert is_contiguous(problem, parts) == bool(parts)


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_the_balance_is_a_bound_for_any_placement(problem: DagProblem) -> None:
    if sum(kind.count for kind in problem.kinds) > 3:
        problem = replace(problem, kinds=(problem.kinds[0], replace(problem.kinds[1], count=0)))
    best = min(value(problem, parts) for parts in assignments(problem))
    for prices in (balance_prices(problem), simple_prices(problem)):
        assert balance_bound(problem, prices) <= best * (1 + 1e-9) + 1e-9


@settings(deadline=None, max_examples=60)
@given(problem=problems(most_items=8))
def test_a_family_knows_the_loads_of_its_differences(problem: DagProblem) -> None:
    ideals = all_ideals(problem, 1000)
    assert ideals is not None
    family = family_of(problem, ideals)
    for at, ideal in enumerate(family.ideals):
        items = tuple(item for item in range(problem.num_items) if ideal >> item & 1)
        cut = sum(net.cost for net in problem.nets if 0 < len(set(net.pins) & set(items)) < len(net.pins))
        assert family.cut_cost[at] == pytest.approx(cut)
        inside = [sum(pin in items for pin in net.pins) for net in problem.nets]
        assert list(family.pins[:, at]) == inside
        for later in range(at):
            assert ideal & ~family.ideals[later] or ideal == family.ideals[later], "a superset comes later"


def test_every_ideal_is_found_once() -> None:
    free = replace(PLAIN, precedence=())
    assert len(all_ideals(free, 100) or []) == 2**4
    assert sorted(all_ideals(PLAIN, 100) or []) == [0, 1, 3, 5, 7, 15]
    assert all_ideals(PLAIN, 5) is None


@settings(deadline=None, max_examples=40)
@given(problem=problems(most_items=7), data=st.data())
def test_the_nearest_ideals_come_first(problem: DagProblem, data: st.DataObject) -> None:
    ideals = all_ideals(problem, 1000)
    assert ideals is not None
    start = data.draw(st.sampled_from(ideals))
    near = ideals_near(problem, start, 1000)
    assert near[0] == start and sorted(near) == sorted(ideals)
    away = [(ideal ^ start).bit_count() for ideal in near]
    assert away == sorted(away)
    assert near[:4] == ideals_near(problem, start, min(4, len(ideals)))


def test_what_is_near_the_best_boundaries_is_searched_where_ideals_are_too_many() -> None:
    """Along topological orders alone, random ones among them, it is 2.6 % above the balance."""
    job = problem_of(lstm_grid(4, 40, accelerators=4, cpus=0), True)
    found = contiguous(job, out_of_time=lambda: False, prove=False)
    assert found.bound_name == "fractional balance"
    assert found.objective <= 1.021 * found.bound


PLAIN = DagProblem(
    kinds=(DeviceKind(name="device", count=2, capacity_bytes=math.inf),), times=((1.0, 2.0, 2.0, 1.0),),
    sizes=(1.0,) * 4, nets=(Net(pins=(0, 1, 2), cost=0.5), Net(pins=(1, 3), cost=0.25)),
    precedence=((0, 1), (0, 2), (1, 3), (2, 3)), members=((0,), (1,), (2,), (3,)),
)
"""a diamond"""


def test_a_net_is_paid_once_by_each_device_that_cuts_it() -> None:
    assert part_load(PLAIN, Part(kind=0, items=(0,))) == pytest.approx(1.0 + 0.5)
    assert part_load(PLAIN, Part(kind=0, items=(1, 2))) == pytest.approx(4.0 + 0.5 + 0.25)
    assert part_load(PLAIN, Part(kind=0, items=(0, 1, 2, 3))) == pytest.approx(6.0)


def test_limit_is_strict_and_time_is_obeyed() -> None:
    family = family_of(PLAIN, all_ideals(PLAIN, 100) or [])
    best = best_split(PLAIN, family, limit=math.inf, prices=[np.array([0.5])], out_of_time=lambda: False)
    assert best is not None
    limit = largest_load(PLAIN, best)
    assert best_split(PLAIN, family, limit=limit, prices=[np.array([0.5])], out_of_time=lambda: False) is None
    with pytest.raises(OutOfTime):
        best_split(PLAIN, family, limit=limit, prices=[np.array([0.5])], out_of_time=lambda: True)


@settings(deadline=None, max_examples=40)
@given(problem=problems(most_items=8), key=st.sampled_from(ORDERS))
def test_orders_respect_the_precedence(problem: DagProblem, key: object) -> None:
    order = topological_order(problem, key)  # type: ignore[arg-type]
    rank = {item: number for number, item in enumerate(order)}
    assert sorted(order) == list(range(problem.num_items))
    assert all(rank[a] < rank[b] for a, b in problem.precedence)
    assert len(prefixes([order])) == problem.num_items + 1
