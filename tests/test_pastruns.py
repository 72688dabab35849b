from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autopart import cache, pastruns
from autopart.pastruns import StageRun, forget, recall, recall_plan, remember
from tests.paper import a_measurement, a_plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))


def recalled() -> tuple[StageRun, ...]:
    return recall("abc123", training=True, optimizer="adamw", batch_size=4)


def test_stages_are_kept_at_the_pace_of_the_profile() -> None:
    plan = a_plan(training=True)
    remember(plan, a_measurement(training=True))
    first, second = recalled()
    assert (first.kind, first.layers) == ("rtx-4090", plan.stages[0].layers)
    assert first.forward_seconds == pytest.approx(0.8 * 1.1e-3)
    assert second.backward_seconds == pytest.approx(0.8 * 2 * 2.1e-3)
    assert first.ratio == pytest.approx(0.8 * 3.2 / 3)


def test_an_emulated_devices_time_is_that_of_its_kind_at_full_speed() -> None:
    plan = a_plan()
    slow = tuple(replace(device, speed=0.5) for device in plan.cluster.devices)
    plan = replace(plan, cluster=replace(plan.cluster, devices=slow))
    remember(plan, replace(a_measurement(), pace=None))
    first, _ = recall("abc123", training=False, optimizer="none", batch_size=4)
    assert first.forward_seconds == pytest.approx(0.55e-3)


def test_another_micro_batch_mode_or_model_knows_nothing_of_it() -> None:
    remember(a_plan(training=True), a_measurement(training=True))
    assert recall("abc123", training=True, optimizer="adamw", batch_size=8) == ()
    assert recall("abc123", training=True, optimizer="sgd", batch_size=4) == ()
    assert recall("other", training=True, optimizer="adamw", batch_size=4) == ()


def test_the_later_of_two_runs_counts() -> None:
    plan, measured = a_plan(training=True), a_measurement(training=True)
    remember(plan, measured)
    remember(plan, replace(measured, pace=1.0))
    assert [run.forward_seconds for run in recalled()] == pytest.approx([1.1e-3, 2.2e-3])


def test_stages_that_recompute_or_have_several_devices_are_left_out() -> None:
    plan = a_plan(training=True)
    stages = (replace(plan.stages[0], recompute=True), plan.stages[1])
    remember(replace(plan, stages=stages), a_measurement(training=True))
    assert [run.layers for run in recalled()] == [plan.stages[1].layers]


def test_a_plan_finds_the_stages_that_it_shares() -> None:
    plan = a_plan(training=True)
    assert recall_plan(plan) == (None, None)
    remember(plan, a_measurement(training=True))
    other = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], layers=("x.2", "x.3", "x.4"))))
    first, second = recall_plan(other)
    assert first is not None and second is None


def test_forgotten_runs_are_gone() -> None:
    remember(a_plan(training=True), a_measurement(training=True))
    forget("abc123", training=True, optimizer="adamw", batch_size=4)
    assert recalled() == ()


def test_runs_of_another_version_are_left_alone_and_it_is_said() -> None:
    plan = a_plan(training=True)
    cache.write("runs", pastruns._key_of(plan), b'[{"kind": "t4"}]')
    with pytest.warns(UserWarning, match="another version"):
        assert recalled() == ()
