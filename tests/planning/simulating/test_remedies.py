from __future__ import annotations

from dataclasses import replace

from autopart.planning import hidden, remedies, simulate
from autopart.schema.measurement import Measurement, StageMeasurement
from autopart.schema.plan import Plan
from tests.planning.simulating.test_hiding import make


def measured(plan: Plan, *, slower: float = 1.0) -> Measurement:
    """A run in which the last stage computes ``slower`` times as long as planned."""
    num, last = plan.schedule.num_microbatches, len(plan.stages) - 1
    factors = [slower if stage.index == last else 1.0 for stage in plan.stages]
    pairs = list(zip(plan.stages, factors, strict=True))
    ran = tuple(
        replace(s, forward_seconds=s.forward_seconds * f, backward_seconds=s.backward_seconds * f) for s, f in pairs
    )
    step = simulate(replace(plan, stages=ran)).step_seconds
    stages = tuple(
        StageMeasurement(
            index=s.index, device=s.devices[0], forward_seconds=s.forward_seconds, backward_seconds=s.backward_seconds,
            optimizer_seconds=0.0, busy_seconds=num * (s.forward_seconds + s.backward_seconds),
            utilisation=num * (s.forward_seconds + s.backward_seconds) / step, peak_bytes=1, receive_seconds=0.25,
        )
        for s in ran
    )
    return Measurement(
        mode=plan.job.mode, batch=plan.job.batch, num_microbatches=num, schedule=plan.schedule.name,
        step_seconds=(step,), median_step_seconds=step, total_seconds=step, throughput_per_second=1.0, losses=(),
        predicted_step_seconds=step, pace=None, stages=stages, single=None, single_skipped_because="x", gain=None,
        alternating=False, verdict="x", versions=(),
    )


def test_idle_devices_and_the_bubble_are_told_with_what_would_help() -> None:
    plan = make("1f1b", bandwidth=5e7)
    found = remedies(plan, measured(plan))
    assert [each.code for each in found] == ["utilisation", "utilisation", "bubble"]
    assert "it waited 250 ms for what it needed" in found[0].message
    gain = simulate(plan).step_seconds / hidden(plan).prediction.step_seconds - 1
    assert f"--prefetch auto gives {gain:+.0%}" in found[0].suggestion
    assert "links that take no time" in found[0].suggestion and "(simulated)" in found[0].suggestion


def test_only_the_device_that_idles_is_told_of() -> None:
    plan = make("gpipe", bandwidth=1e12)
    found = remedies(plan, measured(plan, slower=3.0))
    assert [each.code for each in found] == ["utilisation", "bubble"]
    assert found[0].message.startswith("a computed ")


def test_busy_devices_and_single_ones_are_left_in_peace() -> None:
    plan = make("gpipe", bandwidth=1e12)
    run = measured(plan)
    busy = tuple(replace(each, busy_seconds=0.95 * run.median_step_seconds) for each in run.stages)
    assert remedies(plan, replace(run, stages=busy)) == ()
    assert remedies(plan, replace(run, stages=run.stages[:1])) == ()
