from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.planning import check, plan
from autopart.planning.searching import settling, windows
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.bounds import prove
from autopart.planning.searching.chain import path_objective
from autopart.planning.searching.optimum import find_optimum, instances_of
from autopart.planning.searching.windows import prove_by_windows
from autopart.planning.solving.effort import Effort
from autopart.progress import silent
from autopart.schema.device import Cluster
from autopart.schema.job import Job, SolverName
from autopart.schema.problem import Candidate
from tests.planning.problems import best_wide_by_brute_force, candidate, chain, cluster, device, link, wide_problems
from tests.planning.varied import every_option, varied_problems

Problem = tuple[Candidate, Cluster, Job]

thorough = settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few = settings(thorough, max_examples=12)

A_LITTLE = 1 + 1e-9
NEAR = 2e-5


def effort(solver: SolverName = "auto") -> Effort:
    return Effort(solver=solver, gap=1e-5, deadline=time.monotonic() + 60.0, clock=time.monotonic)


def least_of(problem: Problem) -> float:
    """By looking at every plan."""
    return min((option.objective_seconds for option in every_option(problem)), default=math.inf)


def has_tied_weights(problem: Problem) -> bool:
    uses = [index for layer in problem[0].graph.layers for index in layer.weights]
    return len(set(uses)) < len(uses)


@thorough
@given(varied_problems())
def test_the_best_of_all_plans_is_found_and_the_bound_is_not_above_it(problem: Problem) -> None:
    chosen, devices, job = problem
    best, optimum = least_of(problem), find_optimum((chosen,), devices, job, effort(), silent)
    found = min((option.objective_seconds for option in optimum.options), default=math.inf)
    assert optimum.closed
    assert optimum.bound_seconds <= best * A_LITTLE
    assert math.isinf(found) == math.isinf(best)
    if math.isfinite(best):
        assert found >= best / A_LITTLE
        if not has_tied_weights(problem):  # their exchange is charged with a lower bound
            assert found <= best * (1 + NEAR)
    for option in optimum.options:
        assert not option.misfit


@few
@given(varied_problems(tied=False), st.data())
def test_devices_listed_in_another_order_are_worth_as_much(problem: Problem, data: st.DataObject) -> None:
    """With their names, on which wishes and links depend."""
    chosen, devices, job = problem
    turned = replace(devices, devices=tuple(data.draw(st.permutations(devices.devices))))
    one, other = (find_optimum((chosen,), each, job, effort(), silent) for each in (devices, turned))
    least = [min((option.objective_seconds for option in each.options), default=math.inf) for each in (one, other)]
    assert least[0] == least[1] or least[0] == pytest.approx(least[1], rel=NEAR)
    assert one.bound_seconds <= least[1] * A_LITTLE and other.bound_seconds <= least[0] * A_LITTLE


@few
@given(varied_problems(max_devices=4))
def test_plans_with_everything_at_once_pass_their_check(problem: Problem) -> None:
    chosen, devices, job = problem
    if math.isfinite(least_of(problem)):
        check(plan((chosen,), devices, job), chosen)


@few
@given(wide_problems(bandwidths=(1e5, 3e5)), st.sampled_from(["auto", "highs"]))
def test_programs_find_what_brute_force_finds_where_exchanges_are_long(problem: Problem, solver: SolverName) -> None:
    chosen, devices, job = problem
    problem = chosen, devices, replace(job, schedule="1f1b")
    best, instance = best_wide_by_brute_force(*problem), build_instance(*problem, "1f1b")
    certificate = prove(instance, math.inf, effort(solver), at_least_one_program=True)
    assert certificate.closed
    assert (best is None) == (not certificate.path)
    if best is not None:
        assert certificate.bound_seconds <= best.objective_seconds * A_LITTLE
        found = path_objective(instance, instance.arcs, certificate.path)
        assert found == pytest.approx(best.objective_seconds, rel=NEAR)


@settings(few, max_examples=6)
@given(wide_problems(bandwidths=(1e5, 3e5), max_layers=3), st.sampled_from(["vectors", "programs", "too many"]))
def test_windows_find_it_too(problem: Problem, how: str) -> None:
    """By the exact dynamic program, by programs alone, and where a program may not have all arcs."""
    chosen, devices, job = problem
    instance = build_instance(chosen, devices, job, "1f1b")
    best = best_wide_by_brute_force(chosen, devices, replace(job, schedule="1f1b"))
    with pytest.MonkeyPatch.context() as patch:
        if how != "vectors":
            for module in (windows, settling):
                patch.setattr(module, "can_list", lambda instance: False)
            patch.setattr("autopart.planning.searching.bottleneck.MOST_STATES", 0)
        if how == "too many":
            patch.setattr(settling, "MOST_ARCS", 8)
        certificate = prove_by_windows(instance, math.inf, replace(effort(), gap=1e-4))
    assert (best is None) <= (not certificate.path)
    if best is not None:
        assert certificate.bound_seconds <= best.objective_seconds * A_LITTLE
        if certificate.closed:
            found = path_objective(instance, instance.arcs, certificate.path)
            assert found <= best.objective_seconds * (1 + 2e-4)
    assert certificate.closed or how == "too many"


def rather_1f1b() -> Problem:
    """Under GPipe stages fit that recompute, under 1F1B all others: as many stages, not the same ones."""
    graph = chain(3, weight_bytes=100, value_bytes=300, saved_bytes=1000, peak_bytes=0, training=True)
    chosen = candidate(graph, {"fast": [1e-3, 16e-3, 12e-3], "slow": [5e-3, 16e-3, 4e-3]}, 8)
    devices = cluster(device("a", memory_bytes=18_000), device("b", kind="slow", memory_bytes=18_000),
                      links=(link(bandwidth=1e6),))
    return chosen, devices, Job(mode="train", batch=8, optimizer="sgd", recompute="auto")


def test_recomputing_for_gpipe_does_not_hide_that_1f1b_need_not() -> None:
    chosen, devices, job = problem = rather_1f1b()
    sizes = {len(build_instance(chosen, devices, job, each).arcs) for each in ("1f1b", "gpipe")}
    assert len(sizes) == 1 and len(instances_of(chosen, devices, job)) == 2
    best, optimum = least_of(problem), find_optimum((chosen,), devices, job, effort(), silent)
    assert optimum.bound_seconds <= best * A_LITTLE
    assert min(option.objective_seconds for option in optimum.options) == pytest.approx(best, rel=NEAR)


@pytest.mark.parametrize("words", [{"data_parallel": 2}, {"tensor_parallel": 2}])
def test_devices_without_a_link_are_no_group(words: dict[str, int]) -> None:
    graph = chain(4, training=True, batch_size=2)
    chosen = candidate(graph, {"fast": [1e-2] * 4}, 2)
    job = Job(mode="train", batch=4, optimizer="sgd", **words)  # type: ignore[arg-type]  # words of a job
    found = plan((chosen,), cluster(device("a"), device("b"), links=()), job)
    assert [len(stage.devices) for stage in found.stages] == [1]
