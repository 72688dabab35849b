from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings

from autopart.planning.graphs.dagmerge import absorb_leaves, fuse_cycles
from autopart.planning.graphs.dagproblem import DagProblem, DeviceKind, Net, contract
from tests.planning.graphs.test_dagsplit import assignments, is_contiguous, problems, value


def optimum(problem: DagProblem) -> float:
    return min(value(problem, parts) for parts in assignments(problem) if is_contiguous(problem, parts))


@settings(deadline=None, max_examples=60)
@given(problem=problems(most_items=5))
def test_absorbing_leaves_loses_nothing(problem: DagProblem) -> None:
    problem = replace(problem, kinds=(replace(problem.kinds[0], count=2), replace(problem.kinds[1], count=1)))
    reduced = absorb_leaves(problem, with_bytes=True)
    best = optimum(problem)
    assert optimum(absorb_leaves(problem, with_bytes=False).problem) == pytest.approx(best)
    assert optimum(reduced.relaxation) <= best * (1 + 1e-12)
    assert best <= optimum(reduced.problem) * (1 + 1e-12)
    if reduced.relaxation is reduced.problem:
        assert optimum(reduced.problem) == pytest.approx(best)


def leafy(capacity: float) -> DagProblem:
    """Two weights, each used by one of two layers."""
    return DagProblem(
        kinds=(DeviceKind(name="device", count=2, capacity_bytes=capacity),), times=((0.0, 1.0, 0.0, 1.0),),
        sizes=(4.0, 1.0, 4.0, 1.0),
        nets=(Net(pins=(0, 1), cost=9.0), Net(pins=(1, 3), cost=0.5), Net(pins=(2, 3), cost=9.0)),
        precedence=((0, 1), (1, 3), (2, 3)), members=((10,), (11,), (12,), (13,)),
    )


def test_weights_go_where_they_are_used() -> None:
    reduced = absorb_leaves(leafy(math.inf), with_bytes=False)
    assert sorted(reduced.problem.members) == [(10, 11), (12, 13)]
    assert reduced.relaxation is reduced.problem


def test_bytes_of_absorbed_weights_are_left_out_of_the_relaxation_only() -> None:
    reduced = absorb_leaves(leafy(6.0), with_bytes=True)
    assert reduced.problem.sizes == (5.0, 5.0)
    assert reduced.relaxation.sizes == (1.0, 1.0)
    assert absorb_leaves(leafy(6.0), with_bytes=False).problem.num_items == 4


def test_cycles_become_one_item() -> None:
    # colour classes {0, 3} and {1, 2}: 0 -> 1 and 2 -> 3
    problem = replace(leafy(math.inf), precedence=((0, 1), (2, 3)))
    colored = contract(problem, [0, 1, 1, 0])
    assert colored.precedence == ((0, 1), (1, 0))
    fused = fuse_cycles(colored)
    assert fused.num_items == 1 and sorted(fused.members[0]) == [10, 11, 12, 13] and not fused.nets


def test_contraction_adds_up() -> None:
    problem = contract(leafy(math.inf), [7, 7, 3, 3])
    assert problem.times == ((1.0, 1.0),) and problem.sizes == (5.0, 5.0)
    assert problem.nets == (Net(pins=(0, 1), cost=0.5),) and problem.precedence == ((0, 1),)
