"""Plans without proof are as good as those of a search through everything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from autopart import planning
from autopart.planning.variants import best_variant, kept_variant
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import best_by_brute_force, candidate, chain, cluster, device, problems


@settings(max_examples=40, deadline=None)
@given(problem=problems(training=False))
def test_the_fastest_of_all_plans_is_found(problem: tuple[Candidate, Cluster, Job]) -> None:
    one, devices, job = problem
    best, found = best_by_brute_force(one, devices, job), best_variant((one,), devices, job)
    assert (best is None) == (found is None)
    if best is not None and found is not None:
        assert found.step_seconds == pytest.approx(best.objective_seconds, rel=1e-5)


def test_a_plan_kept_is_the_plan() -> None:
    one, devices = candidate(chain(4), {"fast": (1.0,) * 4}, 4), cluster(device("a"), device("b"))
    plan = planning.plan((one,), devices, Job(batch=4))
    kept = kept_variant(plan, one, devices, plan.job)
    assert kept is not None and kept.step_seconds == pytest.approx(plan.prediction.step_seconds)
    assert [names[0] for names in kept.devices] == [stage.devices[0] for stage in plan.stages]
    small = cluster(device("a", memory_bytes=10), device("b"))
    assert kept_variant(plan, one, small, plan.job) is None


def test_a_device_can_be_asked_for() -> None:
    one = candidate(chain(4), {"fast": (1.0,) * 4, "slow": (90.0,) * 4}, 2)
    devices = cluster(device("a"), device("b", kind="slow"))
    free = best_variant((one,), devices, Job(batch=2))
    forced = best_variant((one,), devices, Job(batch=2), using=("b", 1))
    assert free is not None and free.devices == (("a",),)
    assert forced is not None and {name for names in forced.devices for name in names} >= {"b"}
    assert forced.step_seconds > free.step_seconds
