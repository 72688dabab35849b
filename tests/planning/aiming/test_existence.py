from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.planning import plan
from autopart.planning.aiming.existence import any_plan
from autopart.planning.searching.options import rank
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device, link
from tests.planning.varied import every_option, late_problems

Problem = tuple[Candidate, Cluster, Job]

EFFORT = Effort(solver="auto", gap=1e-5, deadline=60.0, clock=lambda: 0.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(late_problems(), st.floats(0.5, 1.5))
def test_that_no_plan_is_fast_enough_is_only_said_where_none_is(problem: Problem, factor: float) -> None:
    """A limit is about simulated steps, what is proven about the formula: a plan that keeps both has to be found."""
    chosen, devices, job = problem
    options = list(every_option(problem))
    best = min((option.objective_seconds for option in options), default=1.0)
    limit = best * factor * (1 + 1e-6)
    there = any_plan((chosen,), devices, replace(job, max_step_seconds=limit), EFFORT)
    if there.none:
        assert all(option.objective_seconds > limit for option in options)
    assert all(rank(option, job)[0] <= limit * (1 + 1e-9) for option in there.options)


def two_orders() -> Problem:
    """Behind the first stage either order of two devices: the quicker one has an optimizer of 20 s at its end."""
    graph = chain(3, value_bytes=0, training=True)
    chosen = candidate(graph, {"first": [1.0, 100.0, 100.0], "a": [100.0, 0.5, 1.5], "b": [100.0, 1.5, 0.5]}, 1)
    backward = {"first": (4.0, 100.0, 100.0), "a": (100.0, 0.5, 1.5), "b": (100.0, 1.5, 0.5)}
    kinds = tuple(
        replace(kind, backward_seconds=backward[kind.kind],
                optimizer_seconds=(0.0, 0.0, 20.0 if kind.kind == "b" else 0.0))
        for kind in chosen.profile.kinds
    )
    devices = cluster(*(device(kind, kind=kind) for kind in ("first", "a", "b")), links=(link(),))
    chosen = replace(chosen, profile=replace(chosen.profile, kinds=kinds))
    return chosen, devices, Job(mode="train", batch=1, optimizer="sgd", schedule="gpipe", stages=3)


def test_a_plan_that_the_dynamic_program_does_not_see_is_found() -> None:
    """It keeps the least of the weights and the least with optimizers, which here are of two paths."""
    chosen, devices, job = two_orders()
    limited = replace(job, max_step_seconds=12.0)
    (option, *_) = any_plan((chosen,), devices, limited, EFFORT).options
    assert option.layout.devices == ("first", "b", "a")
    assert option.step_seconds == pytest.approx(5 + 6)
    assert any_plan((chosen,), devices, replace(job, max_step_seconds=10.9), EFFORT).none
    found = plan((chosen,), devices, replace(limited, objective="devices"))
    assert found.proof.outcome == "proven" and found.prediction.step_seconds == pytest.approx(11)
