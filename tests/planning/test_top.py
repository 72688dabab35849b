from __future__ import annotations

from dataclasses import replace

import pytest

from autopart.errors import InfeasibleError, UsageError
from autopart.planning import check, plan, plan_top
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import all_options, candidate, chain, cluster, device


def three_devices(*, training: bool = False) -> tuple[Candidate, Cluster, Job]:
    graph = chain(9, training=training)
    chosen = candidate(graph, {"fast": [1e-3] * 9, "slow": [2e-3] * 9}, 4)
    job = Job(batch=4, mode="train" if training else "infer", optimizer="adamw" if training else "none")
    return chosen, cluster(device("a"), device("b"), device("c", kind="slow")), job


def test_the_first_is_the_plan_and_all_are_checked_and_differ() -> None:
    chosen, devices, job = three_devices()
    found = plan_top((chosen,), devices, job, 3, clock=lambda: 0.0)
    assert len(found) == 3
    assert found[0].plan == plan((chosen,), devices, job, clock=lambda: 0.0)
    seconds = [each.plan.prediction.step_seconds for each in found]
    assert seconds == sorted(seconds)
    used = [tuple(sorted(name for stage in each.plan.stages for name in stage.devices)) for each in found]
    assert len(set(used)) == 3
    for each in found:
        check(each.plan, chosen)
        assert each.plan.cluster == devices


def test_the_second_is_the_best_that_differs() -> None:
    """Against brute force: the fastest plan that does not use as many devices of each kind as the best."""
    chosen, devices, job = three_devices()
    best, second = plan_top((chosen,), devices, job, 2)
    kinds = {each.name: each.kind for each in devices.devices}

    def character(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(kinds[name] for name in names))

    first = character(tuple(stage.devices[0] for stage in best.plan.stages))
    others = [
        option.step_seconds for option in all_options(chosen, devices, job)
        if not option.misfit and character(option.layout.devices) != first
    ]
    assert second.plan.prediction.step_seconds == pytest.approx(min(others), rel=1e-3)


def test_trades_are_told_with_numbers() -> None:
    chosen, devices, job = three_devices()
    best, second = plan_top((chosen,), devices, job, 2)
    assert best.trade.startswith("the best plan")
    factor = second.plan.prediction.step_seconds / best.plan.prediction.step_seconds
    assert f"{factor:.3f}x the time" in second.trade
    assert "1 device fewer" in second.trade


def test_a_schedule_is_an_alternative_in_training() -> None:
    chosen, devices, job = three_devices(training=True)
    found = plan_top((chosen,), devices, replace(job, stages=3), 6)
    assert {each.plan.schedule.name for each in found} == {"1f1b", "gpipe"}
    assert any("instead of" in each.trade for each in found)


def test_fewer_plans_where_there_are_no_more() -> None:
    graph = chain(1)
    chosen = candidate(graph, {"fast": [1e-3]}, 1)
    assert len(plan_top((chosen,), cluster(device("a")), Job(batch=1), 5)) == 1


def test_no_plans_are_refused() -> None:
    chosen, devices, job = three_devices()
    with pytest.raises(UsageError, match="at least one plan"):
        plan_top((chosen,), devices, job, 0)


def test_nothing_fits() -> None:
    chosen, _, job = three_devices()
    with pytest.raises(InfeasibleError):
        plan_top((chosen,), cluster(device("a", memory_bytes=10)), job, 2)
