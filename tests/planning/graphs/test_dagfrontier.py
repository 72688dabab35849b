"""Against brute force: every set of items of small problems."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.planning.graphs.dagfrontier import fill, frontier_along, narrow_frontier
from autopart.planning.graphs.dagproblem import DagProblem, Net
from tests.planning.graphs.test_dagsplit import PLAIN, problems


def paid(nets: tuple[Net, ...], held: tuple[int, ...]) -> float:
    return math.fsum(net.cost for net in nets if 0 < len(set(net.pins) & set(held)) < len(net.pins))


@settings(deadline=None, max_examples=60)
@given(problem=problems(), data=st.data())
def test_the_best_sets_of_every_size(problem: DagProblem, data: st.DataObject) -> None:
    num, most = problem.num_items, 6
    units = np.array(data.draw(st.lists(st.integers(0, 8), min_size=num, max_size=num)), dtype=np.int64)
    worth = np.array(data.draw(st.lists(st.sampled_from((-1.0, 0.0, 1.5, 4.0)), min_size=num, max_size=num)))
    frontier = narrow_frontier(problem, problem.nets)
    assert frontier is not None and frontier.forgotten == 0
    found = fill(frontier, units, np.vstack([worth, 2 * worth]), np.array([1.0, 0.0]), most)
    assert found is not None
    subsets = [held for size in range(num + 1) for held in itertools.combinations(range(num), size)]
    for size in range(most + 1):
        fitting = [held for held in subsets if units[list(held)].sum() == size and (units[list(held)] <= most).all()]
        best = max((worth[list(held)].sum() - paid(problem.nets, held) for held in fitting), default=-math.inf)
        assert found.best[0, size] == pytest.approx(best)
        assert found.best[1, size] == pytest.approx(
            max((2 * worth[list(held)].sum() for held in fitting), default=-math.inf)
        )
        if fitting:
            held = found.items(0, size)
            assert units[list(held)].sum() == size
            assert worth[list(held)].sum() - paid(problem.nets, held) == pytest.approx(best)


@settings(deadline=None, max_examples=30)
@given(problem=problems(most_items=8))
def test_what_is_forgotten_makes_sets_cheaper_only(problem: DagProblem) -> None:
    exact = narrow_frontier(problem, problem.nets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopart.planning.graphs.dagfrontier.MOST_STATES", 2)
        coarse = narrow_frontier(problem, problem.nets)
    assert exact is not None and coarse is not None and max(coarse.num_states) <= 2
    units, worth = np.ones(problem.num_items, dtype=np.int64), np.ones((1, problem.num_items))
    tight, loose = (fill(each, units, worth, np.array([1.0]), problem.num_items) for each in (exact, coarse))
    assert tight is not None and loose is not None
    assert (loose.best >= tight.best - 1e-9).all()
    assert (tight.best >= loose.best - coarse.forgotten - 1e-9).all()


def test_out_of_time_there_is_nothing() -> None:
    assert frontier_along(range(4), PLAIN.nets, out_of_time=lambda: True) is None
    frontier = frontier_along(range(4), PLAIN.nets)
    assert frontier is not None
    units = np.ones(4, dtype=np.int64)
    assert fill(frontier, units, np.ones((1, 4)), np.zeros(1), 4, out_of_time=lambda: True) is None
