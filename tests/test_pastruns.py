from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autopart import cache, pastruns
from autopart.pastruns import MOST_OF_A_STAGE, StageRun, forget, recall, recall_plan, remember
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan
from tests.paper import a_measurement, a_plan


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))


def recalled() -> tuple[StageRun, ...]:
    return recall("abc123", training=True, optimizer="adamw", batch_size=4)


def at_pace(pace: float | None, *, factor: float = 1.0, training: bool = True) -> Measurement:
    """A run whose stages took ``factor`` times as long."""
    measured = a_measurement(training=training)
    stages = tuple(
        replace(run, forward_seconds=run.forward_seconds * factor, backward_seconds=run.backward_seconds * factor)
        for run in measured.stages
    )
    return replace(measured, pace=pace, stages=stages)


def test_stages_are_kept_at_the_pace_of_the_profile() -> None:
    plan = a_plan(training=True)
    said = remember(plan, at_pace(0.95))
    assert said == "The next plan of this model with micro-batches of 4 uses what 2 of 2 stages took."
    first, second = recalled()
    assert (first.kind, first.layers) == ("rtx-4090", plan.stages[0].layers)
    assert first.forward_seconds == pytest.approx(0.95 * 1.1e-3)
    assert second.backward_seconds == pytest.approx(0.95 * 2 * 2.1e-3)
    assert first.ratio == pytest.approx(0.95 * 3.2 / 3)


@pytest.mark.parametrize(("changes", "why"), [
    ({"pace": 0.35}, "the machine ran at 0.35 of the pace"),
    ({"pace": 1.2}, "the machine ran at 1.20 of the pace"),
    ({"core_share": 0.4}, "other processes were busy, so it had 40% of its core"),
    ({"step_seconds": (0.02, 0.02, 0.05), "median_step_seconds": 0.02}, "its steps differ by 150%"),
])
def test_a_disturbed_run_teaches_nothing_and_says_why(changes: dict[str, object], why: str) -> None:
    said = remember(a_plan(training=True), replace(at_pace(1.0), **changes))  # type: ignore[arg-type]
    assert said.startswith("The next plan learns nothing of this run") and why in said
    assert recalled() == ()


def test_one_slow_step_of_several_is_not_a_disturbed_run() -> None:
    steps = (0.02, 0.02, 0.021, 0.09)
    remember(a_plan(training=True), replace(at_pace(1.0), step_seconds=steps, median_step_seconds=0.02))
    assert len(recalled()) == 2


def test_an_emulated_devices_time_is_that_of_its_kind_at_full_speed() -> None:
    plan = a_plan()
    slow = tuple(replace(device, speed=0.5) for device in plan.cluster.devices)
    stages = tuple(replace(stage, layer_seconds=(2e-4,) * len(stage.layers)) for stage in plan.stages)
    plan = replace(plan, cluster=replace(plan.cluster, devices=slow), stages=stages)
    measured = at_pace(None, training=False)
    runs = tuple(
        replace(run, layer_seconds=(3e-4,) * len(stage.layers))
        for run, stage in zip(measured.stages, stages, strict=True)
    )
    remember(plan, replace(measured, stages=runs))
    first, _ = recall("abc123", training=False, optimizer="none", batch_size=4)
    assert first.forward_seconds == pytest.approx(0.55e-3)
    assert first.layer_seconds == pytest.approx((1.5e-4,) * 3)
    assert first.predicted_layer_seconds == pytest.approx((1e-4,) * 3)


def test_inference_has_no_backward_whatever_the_stopwatch_saw() -> None:
    measured = at_pace(1.0, training=False)
    stages = tuple(replace(run, backward_seconds=16e-6) for run in measured.stages)
    remember(a_plan(), replace(measured, stages=stages))
    assert [run.backward_seconds for run in recall("abc123", training=False, optimizer="none", batch_size=4)] == [0, 0]


def test_another_micro_batch_mode_or_model_knows_nothing_of_it() -> None:
    remember(a_plan(training=True), at_pace(1.0))
    assert len(recalled()) == 2
    assert recall("abc123", training=True, optimizer="adamw", batch_size=8) == ()
    assert recall("abc123", training=True, optimizer="sgd", batch_size=4) == ()
    assert recall("other", training=True, optimizer="adamw", batch_size=4) == ()


def test_of_several_runs_the_medians_count_so_one_that_is_off_does_nothing() -> None:
    plan = a_plan(training=True)
    for factor in (1.0, 2.88, 1.1):
        remember(plan, at_pace(1.0, factor=factor))
    first, _ = recalled()
    assert first.num_runs == 3
    assert first.forward_seconds == pytest.approx(1.1 * 1.1e-3)


def test_old_runs_of_a_stage_go() -> None:
    plan = a_plan(training=True)
    for _ in range(MOST_OF_A_STAGE):
        remember(plan, at_pace(1.0, factor=9.0))
    for _ in range(MOST_OF_A_STAGE):
        remember(plan, at_pace(1.0))
    first, _ = recalled()
    assert first.num_runs == MOST_OF_A_STAGE
    assert first.forward_seconds == pytest.approx(1.1e-3)


def cut_elsewhere(plan: Plan) -> Plan:
    layers = plan.stages[0].layers + plan.stages[1].layers
    stages = (replace(plan.stages[0], layers=layers[:2]), replace(plan.stages[1], layers=layers[2:]))
    return replace(plan, stages=stages)


def test_the_stages_of_the_most_runs_come_last() -> None:
    plan = a_plan(training=True)
    remember(plan, at_pace(1.0))
    remember(plan, at_pace(1.0))
    remember(cut_elsewhere(plan), at_pace(1.0))
    assert [run.num_runs for run in recalled()] == [1, 1, 2, 2]


def test_stages_that_recompute_or_have_several_devices_are_left_out() -> None:
    plan = a_plan(training=True)
    again = tuple(replace(stage, recompute=True) for stage in plan.stages)
    said = remember(replace(plan, stages=(again[0], plan.stages[1])), at_pace(1.0))
    assert "1 of 2 stages" in said
    assert [run.layers for run in recalled()] == [plan.stages[1].layers]
    assert "learns nothing" in remember(replace(plan, stages=again), at_pace(1.0))


def test_a_plan_finds_the_stages_that_it_shares() -> None:
    plan = a_plan(training=True)
    assert recall_plan(plan) == (None, None)
    remember(plan, at_pace(1.0))
    other = replace(plan, stages=(plan.stages[0], replace(plan.stages[1], layers=("x.2", "x.3", "x.4"))))
    first, second = recall_plan(other)
    assert first is not None and second is None


def test_forgotten_runs_are_gone() -> None:
    remember(a_plan(training=True), at_pace(1.0))
    forget("abc123", training=True, optimizer="adamw", batch_size=4)
    assert recalled() == ()


def test_runs_of_another_version_are_left_alone_and_it_is_said() -> None:
    plan = a_plan(training=True)
    cache.write("runs", pastruns._key_of(plan), b'[{"kind": "t4"}]')
    with pytest.warns(UserWarning, match="another version"):
        assert recalled() == ()
