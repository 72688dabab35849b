from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.bounds import prove
from autopart.planning.searching.chain import best_path, count_vectors, is_exact, path_objective
from autopart.planning.searching.formulate import solve_path
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.options import evaluate, layout_of, schedules
from autopart.planning.searching.prices import price_arcs
from autopart.planning.searching.windows import prove_by_windows
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster
from autopart.schema.job import Job, SolverName
from autopart.schema.problem import Candidate
from tests.planning.problems import best_by_brute_force, candidate, chain, cluster, device, problems

Problem = tuple[Candidate, Cluster, Job]

EFFORT = Effort(solver="auto", gap=1e-5, deadline=60.0, clock=lambda: 0.0)


def instance_of(problem: Problem) -> Instance:
    chosen, devices, job = problem
    return build_instance(chosen, devices, job, schedules(job)[0])


@settings(max_examples=60, deadline=None)
@given(problems(training=False, max_layers=7, max_devices=4))
def test_the_dynamic_program_is_exact(problem: Problem) -> None:
    instance, best = instance_of(problem), best_by_brute_force(*problem)
    path = best_path(instance)
    assert bool(path) == (best is not None)
    if best is not None:
        assert path_objective(instance, instance.arcs, path) == pytest.approx(best.objective_seconds, rel=2e-6)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_path_is_never_dearer_than_its_layout(problem: Problem) -> None:
    """Arcs charge what the layout costs; only the exchange of tied weights is a lower bound."""
    chosen, devices, job = problem
    instance = instance_of(problem)
    path = best_path(instance)
    if path:
        layout = layout_of(instance, path, instance.schedule, devices)
        assert layout is not None
        option = evaluate(chosen, devices, job, layout)
        assert not option.misfit
        assert path_objective(instance, instance.arcs, path) <= option.objective_seconds * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(problems(max_layers=7, max_devices=4))
def test_integer_programs_and_dynamic_program_agree(problem: Problem) -> None:
    instance = instance_of(problem)
    path = best_path(instance)
    certificate = prove(instance, math.inf, EFFORT, at_least_one_program=True)
    assert certificate.closed
    assert bool(certificate.path) == bool(path)
    if path:
        objective = path_objective(instance, instance.arcs, path)
        found = path_objective(instance, instance.arcs, certificate.path)
        assert found <= objective * (1 + 1e-4)
        assert found >= objective * (1 - 1e-4) or instance.arcs.are_late  # then the dynamic program may miss it
        assert certificate.bound_seconds <= objective * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(problems(max_layers=7, max_devices=4))
def test_prices_never_exceed_what_they_bound(problem: Problem) -> None:
    instance = instance_of(problem)
    solution = solve_path(instance, instance.arcs, at_least=None, solver="cbc", time_limit_seconds=30.0,
                          clock=lambda: 0.0)
    priced = price_arcs(instance, instance.arcs, math.inf, None)
    if solution.path:
        total = instance.arcs.sum_along(solution.path)
        assert priced.bound <= total * (1 + 1e-9)
        assert all(priced.through[arc] <= total * (1 + 1e-9) for arc in solution.path)


@pytest.mark.parametrize("solver", ["cbc", "highs"])
def test_a_program_with_every_row(solver: SolverName) -> None:
    """C5 asks for three stages, C7 for both slow devices, C6 for the memory of 1F1B."""
    graph = chain(6, weight_bytes=0, value_bytes=0, saved_bytes=1000, peak_bytes=0, training=True)
    chosen = candidate(graph, {"fast": [1e-3] * 6, "slow": [2e-3] * 6}, 4)
    devices = cluster(
        device("a", memory_bytes=3000), device("b", kind="slow", memory_bytes=4000),
        device("c", kind="slow", memory_bytes=4000),
    )
    instance = build_instance(chosen, devices, Job(batch=4, mode="train", stages=3), "1f1b")
    solution = solve_path(instance, instance.arcs, at_least=(0, 2), solver=solver, time_limit_seconds=30.0,
                          clock=lambda: 0.0)
    assert solution.outcome == "optimal"
    layout = layout_of(instance, solution.path, "1f1b", devices)
    assert layout is not None
    assert sorted(layout.devices) == ["a", "b", "c"]
    # in flight 3, 2, 1 micro-batches of 1000 bytes a layer: one, two and three layers fit, the fast device last
    assert layout.devices[-1] == "a"
    assert layout.boundaries == (0, 1, 3, 6)


def test_a_program_without_a_path_is_infeasible() -> None:
    graph = chain(4, weight_bytes=10**6)
    chosen = candidate(graph, {"fast": [1e-3] * 4}, 2)
    instance = build_instance(chosen, cluster(device("a", memory_bytes=10**6)), Job(batch=2), "gpipe")
    solution = solve_path(instance, instance.arcs, at_least=None, solver="cbc", time_limit_seconds=30.0,
                          clock=lambda: 0.0)
    assert (solution.outcome, solution.objective_bound) == ("infeasible", math.inf)


def test_an_infeasible_said_late_is_not_believed() -> None:
    graph = chain(4)
    chosen = candidate(graph, {"fast": [1e-3] * 4}, 2)
    instance = build_instance(chosen, cluster(device("a"), device("b")), Job(batch=2, stages=2), "gpipe")
    without_end = instance.arcs.keep(instance.arcs.last < instance.end)
    ticks = iter(range(10**6))
    solution = solve_path(instance, without_end, at_least=None, solver="cbc", time_limit_seconds=0.5,
                          clock=lambda: float(next(ticks)))
    assert solution.outcome == "unknown"
    assert solution.objective_bound == -math.inf
    assert "gave no answer" in solution.remark


def test_count_vectors() -> None:
    assert is_exact((4, 4))
    assert len(count_vectors((4, 4))) == 25
    assert not is_exact((16, 16, 16, 16))
    some = count_vectors((16, 16, 16, 16))
    assert (0, 0, 0, 0) in some
    assert (16, 16, 16, 16) in some
    assert len(some) < 1000


def test_many_devices_are_proven_without_listing_their_counts() -> None:
    graph = chain(20)
    kinds = {f"k{n}": [1e-3 * (n + 1)] * 20 for n in range(4)}
    chosen = candidate(graph, kinds, 8)
    devices = cluster(*(device(f"{kind}-{n}", kind=kind) for kind in kinds for n in range(6)))
    instance = build_instance(chosen, devices, Job(batch=8), "gpipe")
    assert not is_exact(instance.counts)
    path = best_path(instance)
    certificate = prove(instance, path_objective(instance, instance.arcs, path), EFFORT)
    assert certificate.closed


def test_layers_that_take_no_time_are_planned_as_well() -> None:
    """A model of views: the search for the least largest stage time must end although it is 0."""
    for size in (0, 1000):
        chosen = candidate(chain(6, value_bytes=size), {"fast": [0.0] * 6, "slow": [0.0] * 6}, 4)
        devices = cluster(device("a"), device("b", kind="slow"))
        instance = build_instance(chosen, devices, Job(batch=4), "gpipe")
        assert path_objective(instance, instance.arcs, best_path(instance)) == 0
        late = Effort(solver="auto", gap=1e-4, deadline=1.0, clock=lambda: 0.0)
        assert prove_by_windows(instance, 1e-3, late).bound_seconds == 0
