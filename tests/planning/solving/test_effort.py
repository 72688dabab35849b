"""Whatever is planned, the deadline ends it: with the best plan met, a bound that holds and its gap."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError
from autopart.planning import plan
from autopart.planning.solving.effort import Effort, never
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Objective
from autopart.schema.problem import Candidate
from tests.planning.problems import (
    GB,
    best_by_brute_force,
    candidate,
    chain,
    cluster,
    device,
    problems,
    wide_problems,
)

Problem = tuple[Candidate, Cluster, Job]
OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency", "cost", "memory", "devices")


class Ticks:
    """A clock that goes on by a second whenever it is looked at; one that is looked at for ever fails."""

    def __init__(self, most: int = 3000) -> None:
        self._numbers, self._most = itertools.count(), most

    def __call__(self) -> float:
        now = next(self._numbers)
        assert now < self._most, "a search goes on after its deadline"
        return float(now)


def with_rents(devices: Cluster) -> Cluster:
    return replace(devices, devices=tuple(replace(each, rent_usd_per_hour=1.0) for each in devices.devices))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    problem=st.one_of(problems(), wide_problems()), objective=st.sampled_from(OBJECTIVES),
    seconds=st.sampled_from([1e-9, 3.0, 10.0, 40.0]),
)
def test_the_deadline_ends_every_search(problem: Problem, objective: Objective, seconds: float) -> None:
    chosen, devices, job = problem
    wide = job.tensor_parallel > 1 or job.data_parallel > 1
    job = replace(job, objective=objective, time_limit_seconds=seconds, stages=None)
    best = None if wide else best_by_brute_force(chosen, devices, job)
    try:
        found = plan((chosen,), with_rents(devices), job, clock=Ticks())
    except InfeasibleError as error:
        assert best is None or "found within" in str(error)
        return
    assert wide or best is not None
    assert found.proof.bound_seconds <= found.proof.objective_seconds * (1 + 1e-9)
    if best is not None and objective in ("throughput", "latency"):
        assert found.proof.bound_seconds <= best.objective_seconds * (1 + 1e-9)


@pytest.mark.parametrize("seconds", [1e-9, 5.0, 100.0])
def test_what_is_short_is_looked_for_no_longer_than_there_is_time(seconds: float) -> None:
    """Doubling the memory until it fits must not go on for ever where no search ends in time."""
    chosen = candidate(chain(6, weight_bytes=GB), {"fast": [1.0] * 6}, 2)
    two = cluster(device("a", memory_bytes=GB), device("b", memory_bytes=GB))
    with pytest.raises(InfeasibleError, match="time"):
        plan((chosen,), two, Job(batch=2, time_limit_seconds=seconds), clock=Ticks())


def test_a_deadline_passes_when_the_clock_says_so() -> None:
    late = Effort(solver="auto", gap=1e-3, deadline=5.0, clock=lambda: 5.0)
    assert late.is_over() and not replace(late, deadline=6.0).is_over() and not never()
