from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.planning.graphs.dagbalance import balance_bound, balance_prices
from autopart.planning.graphs.dagcarving import carving_bound
from autopart.planning.graphs.dagmerge import absorb_leaves
from autopart.planning.graphs.dagplan import contiguous
from autopart.planning.graphs.dagproblem import DagProblem
from autopart.planning.graphs.workload import problem_of
from autopart.schema.workload import Workload
from tests.planning.graphs.test_dagsplit import PLAIN, after, assignments, problems, value
from tests.planning.workloads import chain, inception, lstm_grid, training, transformer


def light(job: Workload) -> DagProblem:
    return absorb_leaves(problem_of(job, False), with_bytes=False).problem


def balance(problem: DagProblem) -> float:
    return balance_bound(problem, balance_prices(problem))


@settings(deadline=None, max_examples=40)
@given(problem=problems(), beyond=st.sampled_from((1.0, 1.3, 3.0)), forgetful=st.booleans())
def test_no_placement_is_below(problem: DagProblem, beyond: float, forgetful: bool) -> None:
    problem = replace(problem, kinds=(replace(problem.kinds[0], count=2), replace(problem.kinds[1], count=1)))
    best = min(value(problem, parts) for parts in assignments(problem))
    low = balance(problem)
    high = beyond * best if math.isfinite(best) else 100.0
    with pytest.MonkeyPatch.context() as patch:
        if forgetful:
            patch.setattr("autopart.planning.graphs.dagfrontier.MOST_STATES", 2)
        found = carving_bound(problem, low, high, out_of_time=after(100))
    assert low <= found
    assert found <= best * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("job", [
    inception(4, accelerators=3), lstm_grid(4, 20, accelerators=4, cpus=0), training(transformer(4, accelerators=3)),
    chain(60, accelerators=4, cpus=0),
], ids=["inception", "lstm", "transformer-training", "chain"])
def test_transfers_are_seen(job: Workload) -> None:
    """What the balance does not see is closed by a good part, and no placement that is known is refuted."""
    problem = light(job)
    known = contiguous(problem_of(job, True), out_of_time=lambda: False, prove=False).objective
    found = carving_bound(problem, balance(problem), known, out_of_time=after(1500))
    assert balance(problem) * 1.002 < found <= known


def test_a_device_that_takes_a_middle_pays_twice() -> None:
    """Six equal items in a row on three devices: one of them is in the middle, or two are torn."""
    row = replace(
        PLAIN, kinds=(replace(PLAIN.kinds[0], count=3),), times=((1.0,) * 6,), sizes=(0.0,) * 6, precedence=(),
        nets=tuple(replace(PLAIN.nets[0], pins=(item, item + 1), cost=0.25) for item in range(5)),
        members=tuple((item,) for item in range(6)),
    )
    assert balance(row) == pytest.approx(2.0)
    found = carving_bound(row, 2.0, 2.5)
    assert 2.25 * (1 - 1e-3) <= found <= 2.5


def test_out_of_time_the_known_bound_is_kept() -> None:
    problem = light(inception(4, accelerators=3))
    for turns in (0, 1, 20, 60):
        known = balance(problem)
        found = carving_bound(problem, known, 2 * known, out_of_time=after(turns))
        assert known <= found


def test_nothing_to_cut_leaves_the_known_bound() -> None:
    assert carving_bound(replace(PLAIN, nets=()), 1.5, 3.0) == 1.5
    assert carving_bound(PLAIN, 1.5, math.inf) == 1.5
