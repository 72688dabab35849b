"""What is said of a plan holds when it is planned anew: gains, crossovers and turning points."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from autopart import planning
from autopart.advising import advised
from autopart.schema.advice import Advice, Sensitivity
from autopart.schema.device import Cluster
from autopart.schema.job import Job, ScheduleName
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from tests.planning.problems import GB, candidate, chain, cluster, device, link

FAST, SLOW = device("a"), device("b", kind="slow")


def layers(seconds: tuple[float, ...], num_microbatches: int = 4, value_bytes: int = 1000) -> Candidate:
    graph = chain(len(seconds), value_bytes=value_bytes)
    return candidate(graph, {"fast": seconds, "slow": [2 * each for each in seconds]}, num_microbatches)


def plan_of(problem: Candidate, devices: Cluster, **words: object) -> Plan:
    job = Job(batch=problem.batch, **words)  # type: ignore[arg-type]
    return advised(planning.plan((problem,), devices, job), (problem,))


def advice(plan: Plan, code: str) -> Advice:
    return next(each for each in plan.advice if each.code == code)


def sensitivity(plan: Plan, quantity: str, of: str) -> Sensitivity:
    return next(each for each in plan.sensitivity if (each.quantity, each.of) == (quantity, of))


def test_a_larger_batch_gains_what_planning_it_gives() -> None:
    problem, devices = layers((1.0, 1.0)), cluster(FAST, device("c"))
    plan = plan_of(problem, devices)
    larger = dataclasses.replace(problem, num_microbatches=16)
    anew = planning.plan((larger,), devices, Job(batch=16)).prediction.throughput_per_second
    gain = advice(plan, "larger-batch").gain
    assert gain == pytest.approx(anew / plan.prediction.throughput_per_second)
    assert gain == pytest.approx((16 / 17) / (4 / 5), rel=1e-3)  # M / (M + S - 1)


def test_what_a_device_adds_is_what_is_lost_without_it() -> None:
    problem = layers((1.0,) * 6)
    plan = plan_of(problem, cluster(FAST, SLOW))
    without = planning.plan((problem,), cluster(FAST), Job(batch=4)).prediction.step_seconds
    found = next(each for each in plan.advice if each.message.startswith("b adds"))
    assert f"b adds {without / plan.prediction.step_seconds - 1:.1%}" in found.message and found.basis == "solved"


def test_where_nothing_fits_without_a_device_that_is_said() -> None:
    graph = chain(2, weight_bytes=70 * GB)
    problem = candidate(graph, {"fast": (1.0, 1.0)}, 2)
    plan = plan_of(problem, cluster(FAST, device("c")))
    assert advice(plan, "device-adds").message == "without c nothing fits"
    halved = sensitivity(plan, "memory", "fast").halved
    assert halved.kept_seconds is halved.best_seconds is None
    assert (sensitivity(plan, "memory", "fast").other_below or 0) > 0.6


def test_the_link_at_which_splitting_begins_to_pay() -> None:
    """Said is a speed at which the best plan has two stages, and a third less of which has one."""
    problem = layers((1.0, 1.0), value_bytes=100_000_000)  # 0.1 s at 1 GB/s
    plan = plan_of(problem, cluster(FAST, device("c")))
    text = advice(plan, "splitting").message
    assert text.startswith("splitting pays: 1.48x a alone") and "with links of " in text
    shown = float(text.split("with links of ")[1].split(" MB/s")[0]) * 1e6

    def stages_at(rate: float) -> int:
        slow = cluster(FAST, device("c"), links=(link(bandwidth=rate),))
        return len(planning.plan((problem,), slow, Job(batch=4)).stages)

    assert (stages_at(shown * 1.02), stages_at(shown / 1.3)) == (2, 1)


def test_a_plan_for_one_device_says_from_when_on_two_would_pay() -> None:
    problem = layers((1.0, 1.0), num_microbatches=4, value_bytes=2 * GB)
    plan = plan_of(problem, cluster(FAST, device("c")))
    assert len(plan.stages) == 1
    text = advice(plan, "splitting").message
    assert "does not pay: a alone is best; it would with links of" in text and "parameters in each layer" in text
    assert not [each for each in plan.advice if each.code in ("larger-batch", "compress", "uneven")]
    assert sensitivity(plan, "bandwidth", "* - *").other_above is not None


def test_the_bound_is_the_share_of_the_longest_layer() -> None:
    plan = plan_of(layers((1.0, 1.0, 6.0)), cluster(FAST, device("c")))
    bound = advice(plan, "bound").message
    assert "at most 1.33x" in bound and "75% of that device's time" in bound
    assert "stage 1 (c) takes 200% longer" in advice(plan, "uneven").message


def test_choices_of_the_user_that_cost_are_named() -> None:
    four, two = layers((1.0,) * 4), layers((2.0,) * 4, num_microbatches=2)
    two = dataclasses.replace(two, graph=dataclasses.replace(two.graph, batch_size=2), profile=dataclasses.replace(
        two.profile, batch_size=2
    ))
    devices, job = cluster(FAST, device("c")), Job(batch=4, microbatches=2)
    plan = advised(planning.plan((two, four), devices, job), (two, four))
    best = planning.plan((two, four), devices, Job(batch=4))
    assert advice(plan, "microbatches").gain == pytest.approx(
        plan.prediction.step_seconds / best.prediction.step_seconds
    )
    assert "(4 micro-batches)" in advice(plan, "microbatches").message


def test_left_out_devices_and_what_using_them_would_cost() -> None:
    slow = device("b", kind="slow", speed=0.05)
    plan = plan_of(layers((1.0, 1.0)), cluster(FAST, slow))
    assert [each.device for each in plan.excluded] == ["b"]
    assert advice(plan, "leave-out").message.startswith("leave b out: ")


def test_what_a_left_out_device_costs_is_over_all_micro_batch_counts() -> None:
    """In one micro-batch the slow device doubles a step, in four it would not: both lists say the same of it."""
    whole, parts = layers((4.0,) * 4, num_microbatches=1), layers((1.1,) * 4)
    graph = dataclasses.replace(whole.graph, batch_size=4)
    whole = dataclasses.replace(whole, graph=graph, profile=dataclasses.replace(whole.profile, batch_size=4))
    devices, job = cluster(FAST, device("b", kind="slow", speed=0.1)), Job(batch=4)
    plan = advised(planning.plan((whole, parts), devices, job), (whole, parts))
    (excluded,) = plan.excluded
    factor = excluded.reason.split(" is ")[1].split("x")[0]
    assert advice(plan, "leave-out").message == f"leave b out: {factor}x faster without"
    alone = planning.plan((whole,), devices, job).excluded[0].reason
    assert alone != excluded.reason and factor in plan.verdict


def test_turning_points_are_where_another_plan_is_better() -> None:
    problem = layers((1.0,) * 8)
    plan = plan_of(problem, cluster(FAST, SLOW))
    found = sensitivity(plan, "speed", "slow")
    assert found.doubled.instead.startswith("moves ") and found.other_above is not None and found.other_above < 2
    row = next(each for each in problem.profile.kinds if each.kind == "slow")
    for factor, same in ((1.0, True), (found.other_above, False)):
        faster = dataclasses.replace(row, forward_seconds=tuple(each / factor for each in row.forward_seconds))
        kinds = tuple(faster if each is row else each for each in problem.profile.kinds)
        changed = dataclasses.replace(problem, profile=dataclasses.replace(problem.profile, kinds=kinds))
        anew = planning.plan((changed,), plan.cluster, Job(batch=4))
        assert ([len(each.layers) for each in anew.stages] == [len(each.layers) for each in plan.stages]) == same
    assert found.doubled.best_seconds is not None and found.doubled.kept_seconds is not None
    assert found.doubled.best_seconds < found.doubled.kept_seconds


def test_groups_that_would_help_are_named_with_what_they_give() -> None:
    graph = chain(2, training=True, batch_size=2, value_bytes=100)
    problem = candidate(graph, {"fast": (1.0, 5.0)}, 2)
    devices = cluster(FAST, device("c"))
    words: dict[str, Any] = {"mode": "train", "batch": problem.batch, "optimizer": "sgd"}
    plan = advised(planning.plan((problem,), devices, Job(**words)), (problem,))
    anew = planning.plan((problem,), devices, Job(**words, data_parallel=2))
    assert len(anew.stages[0].devices) == 2
    found = next(each for each in plan.advice if each.message.startswith("--data-parallel 2"))
    assert found.gain == pytest.approx(plan.prediction.step_seconds / anew.prediction.step_seconds, rel=1e-3)
    assert "(one stage on 2 devices)" in found.message


def test_plans_of_groups_are_advised_too() -> None:
    graph = chain(4, training=True, batch_size=2, value_bytes=100)
    problem = candidate(graph, {"fast": (1.0,) * 4, "slow": (4.0,) * 4}, 2)
    devices = cluster(FAST, device("c"), SLOW)
    job = Job(mode="train", batch=problem.batch, optimizer="sgd", data_parallel=2, recompute="auto")
    planned = planning.plan((problem,), devices, job)
    assert max(len(stage.devices) for stage in planned.stages) == 2
    plan = advised(planned, (problem,))
    adds = [each.message for each in plan.advice if each.code == "device-adds"]
    without = planning.plan((problem,), cluster(FAST, SLOW), job).prediction.step_seconds
    assert any(f"c adds {without / plan.prediction.step_seconds - 1:.1%}" in each for each in adds)
    assert sensitivity(plan, "speed", "fast").doubled.best_seconds is not None


def looped(schedule: ScheduleName, devices: Cluster, num_microbatches: int = 4) -> Plan:
    problem = candidate(
        chain(8, training=True, value_bytes=100), {"fast": (1.0,) * 8, "slow": (3.0,) * 8}, num_microbatches
    )
    job = Job(mode="train", batch=problem.batch, optimizer="sgd", schedule=schedule)
    return advised(planning.plan((problem,), devices, job), (problem,))


@pytest.mark.parametrize("schedule", ["interleaved", "zero-bubble"])
def test_plans_with_several_stages_per_device_are_advised_by_simulation(schedule: ScheduleName) -> None:
    plan = looped(schedule, cluster(FAST, SLOW))
    assert {each.basis for each in plan.advice} == {"simulated"}
    assert any("what changes do is simulated on this plan's devices" in each.message for each in plan.advice)
    larger = looped(schedule, cluster(FAST, SLOW), 16).prediction.throughput_per_second
    gain = advice(plan, "larger-batch").gain
    assert gain is not None and 1.02 < gain <= larger / plan.prediction.throughput_per_second * (1 + 1e-9)
    alone = 4 * 8 * 3.0 + 8 * 0.1  # forward, twice that backward, and the update
    adds = next(each.message for each in plan.advice if each.message.startswith("b adds"))
    assert f"b adds {alone / plan.prediction.step_seconds - 1:.1%}" in adds
    assert advice(plan, "splitting").message.startswith("splitting pays")
    for kind in ("fast", "slow"):
        both = sensitivity(plan, "speed", kind).doubled
        assert both.kept_seconds is not None and both.best_seconds is not None
        assert both.best_seconds <= both.kept_seconds * (1 + 1e-9) < plan.prediction.step_seconds * (1 + 1e-9)


def test_a_looped_plan_with_twice_the_speed_takes_half_the_time_with_the_same_cuts() -> None:
    plan = looped("interleaved", cluster(FAST, device("c")))
    both = sensitivity(plan, "speed", "fast").doubled
    assert both.kept_seconds == pytest.approx(plan.prediction.step_seconds / 2, rel=1e-3) and not both.instead
    assert len(plan.stages) > 2


def test_where_cuts_have_to_move_they_do_and_memory_is_kept() -> None:
    """With three times the speed the slow device takes more layers, and half the memory is not enough."""
    plan = looped("interleaved", cluster(FAST, SLOW))
    found = sensitivity(plan, "speed", "slow")
    assert "moves" in found.doubled.instead and (found.other_above or 9.0) <= 2.0
    needed = max(
        sum(stage.peak_bytes for stage in plan.stages if stage.devices == (name,)) for name in ("a", "b")
    )
    tight = cluster(*(dataclasses.replace(each, memory_bytes=needed) for each in (FAST, SLOW)))
    halved = sensitivity(looped("interleaved", tight), "memory", "fast").halved
    assert halved.kept_seconds is None


def test_of_a_looped_schedule_on_one_device_nothing_is_said() -> None:
    plan = looped("interleaved", cluster(FAST))
    assert len(plan.stages) == 1 and not plan.advice


@pytest.mark.parametrize("words", [{"objective": "memory"}, {"method": "even"}])
def test_of_other_kinds_of_plans_nothing_is_said(words: dict[str, object]) -> None:
    plan = plan_of(layers((1.0, 1.0)), cluster(FAST, device("c")), **words)
    assert not plan.advice and not plan.sensitivity


def test_the_same_plan_gets_the_same_advice() -> None:
    problem, devices = layers((1.0, 2.0, 3.0)), cluster(FAST, SLOW)
    one, other = plan_of(problem, devices), plan_of(problem, devices)
    assert (one.advice, one.sensitivity) == (other.advice, other.sensitivity) and one.advice
