from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings

from autopart.planning.graphs.dagfree import non_contiguous
from autopart.planning.graphs.dagplan import Placement, contiguous, largest_load
from autopart.planning.graphs.dagproblem import DagProblem, DeviceKind, Net, Part, part_bytes
from autopart.planning.graphs.dagprogram import Verdict, improve_or_prove
from autopart.planning.graphs.dagsearch import search
from tests.planning.graphs.test_dagsplit import PLAIN, assignments, problems, value


def small(problem: DagProblem) -> DagProblem:
    return replace(problem, kinds=(replace(problem.kinds[0], count=2), replace(problem.kinds[1], count=1)))


@settings(deadline=None, max_examples=25)
@given(problem=problems())
def test_non_contiguous_is_as_good_as_brute_force(problem: DagProblem) -> None:
    problem = small(problem)
    best = min(value(problem, parts) for parts in assignments(problem))
    start = contiguous(problem, out_of_time=lambda: False)
    found = non_contiguous(
        problem, start, solver="auto", gap=1e-4, time_limit_seconds=20.0, clock=time.perf_counter
    )
    parts = tuple(Part(kind=kind, items=nodes) for kind, nodes in found.parts)
    assert found.objective == pytest.approx(best, rel=2e-4)
    assert found.bound <= best * (1 + 1e-9) + 1e-9
    assert value(problem, parts) == pytest.approx(found.objective)
    assert found.objective <= start.objective


@settings(deadline=None, max_examples=25)
@given(problem=problems(most_items=8))
def test_search_keeps_what_fits_and_never_gets_worse(problem: DagProblem) -> None:
    start = contiguous(problem, out_of_time=lambda: False)
    if not start.parts:
        return
    parts = tuple(Part(kind=kind, items=nodes) for kind, nodes in start.parts)
    better = search(problem, parts, num_rounds=3, moves_per_round=30, out_of_time=lambda: False)
    assert largest_load(problem, better) <= start.objective
    assert sorted(item for part in better for item in part.items) == list(range(problem.num_items))
    for part in better:
        assert part_bytes(problem, part) <= problem.kinds[part.kind].capacity_bytes
    assert better == search(problem, parts, num_rounds=3, moves_per_round=30, out_of_time=lambda: False)


@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_the_program_proves_an_optimum_and_improves_what_is_not(solver: str) -> None:
    best = min(value(PLAIN, parts) for parts in assignments(PLAIN))

    def ask(incumbent: float) -> Verdict:
        return improve_or_prove(
            PLAIN, incumbent=incumbent, bound=0.0, gap=1e-3, solver=solver,  # type: ignore[arg-type]
            time_limit_seconds=20.0, clock=time.perf_counter,
        )

    proof = ask(best)
    assert proof.parts == () and best / 1.0011 <= proof.bound <= best
    better = ask(2 * best)
    assert largest_load(PLAIN, better.parts) == pytest.approx(best, rel=1e-3)


def test_a_start_that_does_not_fit_is_replaced() -> None:
    tight = replace(PLAIN, kinds=(replace(PLAIN.kinds[0], capacity_bytes=2.0),))
    nothing = Placement(parts=(), objective=math.inf, bound=math.inf, bound_name="", solver="")
    found = non_contiguous(tight, nothing, solver="auto", gap=1e-3, time_limit_seconds=20.0, clock=time.perf_counter)
    assert found.objective == pytest.approx(min(value(tight, parts) for parts in assignments(tight)))


def test_nothing_fits() -> None:
    tight = replace(PLAIN, kinds=(replace(PLAIN.kinds[0], capacity_bytes=1.0),))
    nothing = Placement(parts=(), objective=math.inf, bound=math.inf, bound_name="", solver="")
    found = non_contiguous(tight, nothing, solver="auto", gap=1e-3, time_limit_seconds=20.0, clock=time.perf_counter)
    assert found.parts == () and found.objective == math.inf


def test_a_start_that_tears_idle_items_from_their_neighbours_is_not_lost() -> None:
    """The idle item 0 is absorbed by 1; a contiguous placement may have it with something else."""
    idle = replace(
        PLAIN, times=((0.0, 3.0, 2.0, 1.0),), nets=(Net(pins=(0, 1), cost=0.0), Net(pins=(1, 2, 3), cost=0.5)),
        precedence=(),
    )
    start = Placement(parts=((0, (0, 2, 3)), (0, (1,))), objective=3.5, bound=0.0, bound_name="", solver="")
    found = non_contiguous(idle, start, solver="auto", gap=1e-3, time_limit_seconds=0.0, clock=lambda: 0.0)
    assert found.objective == 3.5


@settings(deadline=None, max_examples=15)
@given(problem=problems(most_items=8))
def test_out_of_time_it_is_never_worse_than_the_contiguous_start(problem: DagProblem) -> None:
    start = contiguous(problem, out_of_time=lambda: False)
    if not start.parts:
        return
    ticks = iter(range(10**6))
    found = non_contiguous(
        replace(problem, precedence=()), start, solver="highs", gap=1e-3, time_limit_seconds=0.0,
        clock=lambda: float(next(ticks)),
    )
    assert found.objective <= start.objective


def two_by_two(cost: float) -> DagProblem:
    """Four items in a row on two accelerators and a slower CPU, which pays for no transfer."""
    return replace(
        PLAIN, times=((3.0, 3.0, 3.0, 3.0), (9.0, 9.0, 9.0, 9.0)), sizes=(1.0,) * 4,
        nets=tuple(Net(pins=(item, item + 1), cost=cost) for item in range(3)), precedence=(),
        members=tuple((item,) for item in range(4)),
        kinds=(
            DeviceKind(name="accelerator", count=2, capacity_bytes=math.inf),
            DeviceKind(name="cpu", count=1, capacity_bytes=math.inf, transfer_factor=0.0),
        ),
    )


@pytest.mark.parametrize("cost", [0.1, 4.0, 1e9])
def test_dear_transfers_are_proven_not_to_pay(cost: float) -> None:
    """At 1e9 whoever cuts a net is beyond anything; the balance alone would say a third."""
    problem = two_by_two(cost)
    best = min(value(problem, parts) for parts in assignments(problem))
    nothing = Placement(parts=(), objective=math.inf, bound=0.0, bound_name="", solver="")
    found = non_contiguous(problem, nothing, solver="auto", gap=1e-4, time_limit_seconds=20.0, clock=time.perf_counter)
    assert found.objective == pytest.approx(best)
    assert best / 1.0001 <= found.bound <= best


def test_that_nothing_fits_is_proven() -> None:
    """Four items of 1 on two accelerators of 1.5."""
    problem = two_by_two(0.1)
    accelerators = replace(problem.kinds[0], capacity_bytes=1.5)
    problem = replace(problem, kinds=(accelerators, replace(problem.kinds[1], count=0)))
    nothing = Placement(parts=(), objective=math.inf, bound=0.0, bound_name="", solver="")
    found = non_contiguous(problem, nothing, solver="auto", gap=1e-4, time_limit_seconds=20.0, clock=time.perf_counter)
    assert not found.parts and found.bound == math.inf
