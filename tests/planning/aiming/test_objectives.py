"""Objectives other than time, and limits of time and price, against brute force over all plans."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError, UsageError
from autopart.planning import CheckError, check, plan, plan_top
from autopart.planning.aiming.objectives import SEARCHES
from autopart.planning.aiming.quantities import amount_of, keeps_limits
from autopart.planning.searching.options import Option
from autopart.planning.solving.effort import Effort
from autopart.progress import silent
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Objective
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from tests.planning.problems import all_options, candidate, chain, cluster, device, problems
from tests.planning.varied import every_option, varied_problems

Problem = tuple[Candidate, Cluster, Job]

thorough = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


TRAINED: tuple[Objective, ...] = ("cost", "memory", "devices")
ALL: tuple[Objective, ...] = ("throughput", "latency", *TRAINED)


@st.composite
def priced(draw: st.DrawFn, objective: Objective, *, training: bool | None = False) -> Problem:
    """A random problem with rents, maybe a limit of time, maybe one of price."""
    chosen, devices, job = draw(problems(training=training))
    rents = {kind: draw(st.integers(1, 8)) / 4 for kind in ("fast", "slow")}
    priced = tuple(replace(each, rent_usd_per_hour=rents[each.kind]) for each in devices.devices)
    job = replace(
        job, objective=objective,
        max_step_seconds=draw(st.sampled_from([None, 0.02005, 0.05005, 0.15005])),
        max_usd_per_hour=None if objective == "devices" else draw(st.sampled_from([None, 0.5, 1.3, 3.0])),
    )
    return chosen, replace(devices, devices=priced), job


def solve(problem: Problem) -> Plan | None:
    chosen, devices, job = problem
    try:
        return plan((chosen,), devices, job, clock=lambda: 0.0)
    except InfeasibleError:
        return None


def allowed(problem: Problem) -> list[Option]:
    """Every plan that fits and keeps the limits."""
    chosen, devices, job = problem
    options = (option for option in all_options(chosen, devices, job) if not option.misfit)
    return [option for option in options if keeps_limits(option, devices, job)]


def agrees(problem: Problem) -> None:
    """The plan is as good as the best of all plans, its bound holds, and it is there if any plan is."""
    chosen, devices, job = problem
    result, options = solve(problem), allowed(problem)
    assert (result is None) == (not options)
    if result is not None:
        check(result, chosen)
        best = min(amount_of(option, devices, job, option.objective_seconds) for option in options)
        least = result.proof.least
        value = result.proof.objective_seconds if least is None else least.value
        bound = result.proof.bound_seconds if least is None else least.bound
        assert bound <= best * (1 + 1e-6)
        assert value == pytest.approx(best, rel=2e-3)
        assert result.proof.outcome == "proven"


@thorough
@given(priced("cost"))
def test_the_cheapest_step_is_found(problem: Problem) -> None:
    agrees(problem)


@thorough
@given(priced("memory"))
def test_the_least_share_of_memory_is_found(problem: Problem) -> None:
    agrees(problem)


@thorough
@given(priced("devices"))
def test_the_fewest_devices_are_found(problem: Problem) -> None:
    agrees(problem)


@thorough
@given(priced("throughput"))
def test_the_fastest_within_a_price_is_found(problem: Problem) -> None:
    agrees(problem)


@thorough
@given(priced("latency"))
def test_the_least_latency_within_a_price_is_found(problem: Problem) -> None:
    agrees(problem)


@st.composite
def late(draw: st.DrawFn, *, hurried: bool = False) -> Problem:
    """Optimizers of any size, wide stages, recomputing, and any objective, maybe within a price, or a time."""
    chosen, devices, job = draw(varied_problems(training=True, max_layers=5, wished=False))
    rents = {kind: draw(st.integers(1, 8)) / 4 for kind in ("fast", "slow")}
    rented = tuple(replace(each, rent_usd_per_hour=rents[each.kind]) for each in devices.devices)
    objective = draw(st.sampled_from(TRAINED if hurried else ALL))
    return chosen, replace(devices, devices=rented), replace(
        job, objective=objective,
        max_usd_per_hour=None if objective == "devices" else draw(st.sampled_from([None, None, 1.3, 3.0])),
        max_step_seconds=draw(st.sampled_from([0.05, 0.1, 0.2, 0.4])) if hurried else None,
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.sampled_from(TRAINED).flatmap(lambda name: priced(name, training=True)), late(hurried=True)))
def test_in_training_bounds_hold(problem: Problem) -> None:
    """The simulated step, which limits are about, can be shorter or longer than the formula, which is proven."""
    result = solve(problem)
    options = [option for option in every_option(problem) if keeps_limits(option, problem[1], problem[2])]
    if result is not None and result.proof.least is not None:
        devices, job = problem[1], problem[2]
        kept = [o for o in options if o.objective_seconds <= (job.max_step_seconds or math.inf)]
        amounts = [amount_of(option, devices, job, option.objective_seconds) for option in kept]
        assert result.proof.least.bound <= min(amounts, default=math.inf) * (1 + 1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(late())
def test_with_late_optimizers_every_search_finds_the_least(problem: Problem) -> None:
    """By the formula, of all plans there are: what simulation says may differ in training."""
    chosen, devices, job = problem
    options = [option for option in every_option(problem) if keeps_limits(option, devices, job)]
    effort = Effort(solver="auto", gap=1e-5, deadline=60.0, clock=lambda: 0.0)
    optimum = SEARCHES[job.objective]((chosen,), devices, job, effort, silent)
    assert bool(optimum.options) == bool(options)
    if options:
        def amount(option: Option) -> float:
            return amount_of(option, devices, job, option.objective_seconds)

        best, found = min(map(amount, options)), min(map(amount, optimum.options))
        bound = optimum.bound_seconds if optimum.least_bound is None else optimum.least_bound
        assert optimum.closed and bound <= best * (1 + 1e-6) and found >= best * (1 - 1e-9)
        if len({index for layer in chosen.graph.layers for index in layer.weights}) == len(chosen.graph.layers):
            assert found <= best * (1 + (1e-3 if job.objective == "memory" else 2e-5))
            near = [option.objective_seconds for option in optimum.options if amount(option) <= found * (1 + 1e-9)]
            if job.objective == "devices":
                fastest = min(option.objective_seconds for option in options if amount(option) == best)
                assert min(near) <= fastest * (1 + 2e-5)


def bracket(result: Plan) -> tuple[float, float]:
    """The bound and the value of what is made least."""
    least = result.proof.least
    if least is None:
        return result.proof.bound_seconds, result.proof.objective_seconds
    return least.bound, least.value


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ALL).flatmap(priced))
def test_a_device_less_is_never_better_for_any_objective(problem: Problem) -> None:
    chosen, devices, job = problem
    problem = (chosen, devices, replace(job, stages=None))
    before = solve(problem)
    for left_out in devices.devices if len(devices.devices) > 1 else ():
        fewer = replace(devices, devices=tuple(each for each in devices.devices if each != left_out))
        after = solve((chosen, fewer, problem[2]))
        if after is not None:
            assert before is not None
            assert bracket(after)[1] >= bracket(before)[0] * (1 - 1e-9)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ALL).flatmap(priced), st.randoms(use_true_random=False))
def test_names_and_order_of_devices_are_worth_nothing_to_any_objective(problem: Problem, dice: random.Random) -> None:
    chosen, devices, job = problem
    turned = [replace(each, name=f"x{number}") for number, each in enumerate(devices.devices)]
    dice.shuffle(turned)
    before, after = solve(problem), solve((chosen, replace(devices, devices=tuple(turned)), job))
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        low, value = bracket(before)
        assert bracket(after)[1] >= low * (1 - 1e-9) and value >= bracket(after)[0] * (1 - 1e-9)


def small(**words: object) -> Problem:
    """Eight layers; the fast devices are four times as fast and six times as dear as the slow ones."""
    graph = chain(8, weight_bytes=1000)
    chosen = candidate(graph, {"fast": [1e-3] * 8, "slow": [4e-3] * 8}, 8)
    fast = tuple(replace(device(name), rent_usd_per_hour=6.0) for name in "ab")
    slow = tuple(replace(device(name, kind="slow"), rent_usd_per_hour=1.0) for name in "cdef")
    job = Job(batch=8, **words)  # type: ignore[arg-type]  # words of a job
    return chosen, cluster(*fast, *slow), job


def used(result: Plan | None) -> list[str]:
    assert result is not None
    return sorted(name for stage in result.stages for name in stage.devices)


def test_a_time_limit_makes_the_cheapest_plan_dearer() -> None:
    free = solve(small(objective="cost"))
    assert used(free) == ["c"]
    hurried = solve(small(objective="cost", max_step_seconds=0.15))
    assert hurried is not None and free is not None
    assert hurried.proof.least is not None and free.proof.least is not None
    assert hurried.proof.least.value > free.proof.least.value
    assert hurried.prediction.step_seconds <= 0.15
    assert "$ a step" in hurried.verdict
    assert all("cheaper" in each.reason for each in hurried.excluded)


def test_a_price_limit_makes_the_fastest_plan_slower() -> None:
    free, poor = solve(small()), solve(small(max_usd_per_hour=4.0))
    assert used(poor) == ["c", "d", "e", "f"]
    assert free is not None and poor is not None
    assert poor.prediction.step_seconds > free.prediction.step_seconds


def test_no_plan_is_fast_enough() -> None:
    chosen, devices, job = small(max_step_seconds=1e-3)
    with pytest.raises(InfeasibleError, match=r"no plan takes 1.00 ms a step or less: .* give --max-step-time"):
        plan((chosen,), devices, job)


def test_no_plan_is_cheap_enough() -> None:
    chosen, devices, job = small(max_usd_per_hour=0.5)
    with pytest.raises(InfeasibleError, match=r"it takes devices of 1 \$/h; give --max-price 1\$/h"):
        plan((chosen,), devices, job)


def test_what_it_takes_is_what_is_told() -> None:
    chosen, devices, job = small(max_step_seconds=1e-3)
    with pytest.raises(InfeasibleError) as error:
        plan((chosen,), devices, job)
    limit = float(str(error.value).split("--max-step-time ")[1].split("ms")[0]) * 1e-3
    assert plan((chosen,), devices, replace(job, max_step_seconds=limit)).prediction.step_seconds <= limit


def test_where_memory_is_short_the_limits_are_not_blamed() -> None:
    chosen, devices, job = small(max_step_seconds=1.0)
    tiny = replace(devices, devices=tuple(replace(each, memory_bytes=10) for each in devices.devices))
    with pytest.raises(InfeasibleError, match="no plan fits in memory"):
        plan((chosen,), tiny, job)


def test_a_device_without_a_rent_is_refused_and_may_be_given_one() -> None:
    chosen, _, job = small(objective="cost")
    bare = cluster(device("a"), device("b", kind="slow"))
    with pytest.raises(UsageError, match=r"no rent is known of a, b; give it, for example --rent a=0.50\$/h"):
        plan((chosen,), bare, job)
    with pytest.raises(UsageError, match="a rent is given for x, which is no device here"):
        plan((chosen,), bare, replace(job, rents=(("x", 1.0),)))
    result = plan((chosen,), bare, replace(job, rents=(("a", 9.0), ("slow", 1.0))))
    assert used(result) == ["b"]
    assert result.cluster.device("a").rent_usd_per_hour == 9.0


def test_free_devices_have_no_cheapest_plan() -> None:
    chosen, devices, job = small(objective="cost", rents=(("fast", 0.0), ("slow", 0.0)))
    with pytest.raises(UsageError, match="all devices are free"):
        plan((chosen,), devices, job)


def test_least_memory_spreads_and_then_is_as_fast_as_can_be() -> None:
    result = solve(small(objective="memory"))
    assert result is not None and result.proof.least is not None
    assert len(result.stages) == 6
    assert "of a device's memory" in result.verdict
    assert result.proof.least.value == max(stage.peak_bytes / stage.capacity_bytes for stage in result.stages)


def test_the_fewest_devices_is_one_where_one_is_enough_and_that_the_fastest() -> None:
    result = solve(small(objective="devices"))
    assert used(result) in (["a"], ["b"])
    assert result is not None and "one device is enough" in result.verdict
    two = solve(small(objective="devices", max_step_seconds=0.06))
    assert used(two) == ["a", "b"]


def test_a_plan_that_breaks_its_limit_does_not_pass_its_check() -> None:
    problem = small(max_usd_per_hour=4.0)
    result = solve(problem)
    assert result is not None
    with pytest.raises(CheckError, match="the rent is 4"):
        check(replace(result, job=replace(result.job, max_usd_per_hour=3.0)), problem[0])


def test_alternatives_are_ranked_by_what_is_wanted() -> None:
    chosen, devices, job = small(objective="cost")
    found = plan_top((chosen,), devices, job, 3)
    costs = [each.plan.proof.least.value for each in found if each.plan.proof.least is not None]
    assert len(costs) == 2
    assert costs == sorted(costs)


def test_a_known_best_plan_is_not_sought_again() -> None:
    chosen, devices, job = small()
    best = replace(plan((chosen,), devices, job), verdict="known")
    assert plan_top((chosen,), devices, job, 2, best=best)[0].plan is best


def test_jobs_with_senseless_limits_are_refused() -> None:
    for words in ({"max_step_seconds": 0.0}, {"max_usd_per_hour": -1.0}, {"rents": (("a", -1.0),)},
                  {"objective": "devices", "max_usd_per_hour": 1.0}):
        with pytest.raises(ValueError):
            small(**words)
