from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings

from autopart.planning.graphs.dagmerge import absorb_leaves
from autopart.planning.graphs.dagpairs import reshare
from autopart.planning.graphs.dagplan import largest_load
from autopart.planning.graphs.dagproblem import DagProblem, Net, Part, part_bytes
from autopart.planning.graphs.workload import problem_of
from tests.planning.graphs.test_dagsplit import PLAIN, after, assignments, problems, value
from tests.planning.workloads import inception


@settings(deadline=None, max_examples=40)
@given(problem=problems())
def test_what_fits_stays_whole_and_never_gets_worse(problem: DagProblem) -> None:
    fitting = (parts for parts in assignments(problem) if math.isfinite(value(problem, parts)))
    for parts in itertools.islice(fitting, 5):
        better = reshare(problem, parts, range(problem.num_items))
        assert value(problem, better) <= value(problem, parts)
        assert sorted(item for part in better for item in part.items) == list(range(problem.num_items))
        for g, kind in enumerate(problem.kinds):
            assert sum(part.kind == g for part in better) <= kind.count
        assert all(part_bytes(problem, part) <= problem.kinds[part.kind].capacity_bytes for part in better)


def row(num_items: int, *, accelerators: int) -> DagProblem:
    """Equal items one after the other, whose transfers are dear."""
    return replace(
        PLAIN, kinds=(replace(PLAIN.kinds[0], count=accelerators),), times=((1.0,) * num_items,), precedence=(),
        sizes=(0.0,) * num_items, members=tuple((item,) for item in range(num_items)),
        nets=tuple(Net(pins=(item, item + 1), cost=0.5) for item in range(num_items - 1)),
    )


def test_a_block_moves_at_once() -> None:
    """Every single move makes it worse: an item that leaves its neighbours cuts two nets more."""
    problem = row(12, accelerators=2)
    torn = (Part(kind=0, items=(0, 1, 2, 6, 7, 8)), Part(kind=0, items=(3, 4, 5, 9, 10, 11)))
    assert largest_load(problem, torn) == pytest.approx(7.5)
    better = reshare(problem, torn, range(12))
    assert largest_load(problem, better) == pytest.approx(6.5)


def test_devices_that_hold_nothing_get_their_share() -> None:
    problem = row(12, accelerators=3)
    better = reshare(problem, (Part(kind=0, items=tuple(range(12))),), range(12))
    assert largest_load(problem, better) <= 7.0


def test_it_ends_in_time_with_what_it_has() -> None:
    problem = absorb_leaves(problem_of(inception(4, accelerators=3), False), with_bytes=False).problem
    all_on_one = (Part(kind=0, items=tuple(range(problem.num_items))),)
    for turns in (0, 10, 400):
        found = reshare(problem, all_on_one, range(problem.num_items), out_of_time=after(turns))
        assert largest_load(problem, found) <= largest_load(problem, all_on_one)
    assert largest_load(problem, found) < 0.6 * largest_load(problem, all_on_one)
