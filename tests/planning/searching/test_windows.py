from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings

from autopart.planning.searching import settling, windows
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.bottleneck import least_threshold
from autopart.planning.searching.chain import best_path, path_objective
from autopart.planning.searching.formulate import Solution
from autopart.planning.searching.frontier import least_sum
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.options import schedules
from autopart.planning.searching.relaxation import Window, relax
from autopart.planning.searching.windows import prove_by_windows
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import best_wide_by_brute_force, candidate, chain, cluster, device, problems, wide_problems

Problem = tuple[Candidate, Cluster, Job]


def effort() -> Effort:
    return Effort(solver="auto", gap=1e-4, deadline=time.monotonic() + 60.0, clock=time.monotonic)


thorough = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def instance_of(problem: Problem) -> Instance:
    chosen, devices, job = problem
    return build_instance(chosen, devices, job, schedules(job)[0])


@thorough
@given(problems(max_layers=7, max_devices=4))
def test_windows_agree_with_the_exact_dynamic_program(problem: Problem) -> None:
    instance = instance_of(problem)
    assume(instance.repeats > 0)
    path, certificate = best_path(instance), prove_by_windows(instance, math.inf, effort())
    assert certificate.closed
    assert bool(certificate.path) == bool(path)
    if path:
        least = path_objective(instance, instance.arcs, path)
        assert certificate.bound_seconds <= least * (1 + 1e-9)
        assert path_objective(instance, instance.arcs, certificate.path) <= least * (1 + 2e-4)


@thorough
@given(problems(max_layers=7, max_devices=4))
def test_every_part_bounds_the_best_plan(problem: Problem) -> None:
    """The floor, the relaxation and its arcs' lengths, and the least sum: none is above what it bounds."""
    instance = instance_of(problem)
    path = best_path(instance)
    assume(instance.repeats > 0 and path)
    objective, longest = path_objective(instance, instance.arcs, path), float(instance.arcs.seconds[list(path)].max())
    least = least_threshold(instance, math.inf, 1e-4)
    assert least.floor_seconds <= longest * (1 + 1e-9)
    window = Window(low=least.floor_seconds, high=longest * (1 + 1e-6))
    kept = instance.arcs.seconds < window.high
    arcs = instance.arcs.keep(kept)
    relaxed = relax(instance, arcs, window, math.inf)
    assert relaxed.bound <= objective * (1 + 1e-7)
    position = {int(arc): at for at, arc in enumerate(kept.nonzero()[0])}
    assert all(relaxed.through[position[arc]] <= objective * (1 + 1e-7) for arc in path)
    sums = least_sum(instance, arcs, 10**9)
    assert sums.total <= instance.arcs.sum_along(path) * (1 + 1e-9)
    assert arcs.sum_along(sums.path) >= sums.total * (1 - 1e-9)
    assert arcs.are_late or arcs.sum_along(sums.path) == pytest.approx(sums.total)


@thorough
@given(wide_problems())
def test_windows_find_what_brute_force_finds_among_wide_stages(problem: Problem) -> None:
    chosen, devices, job = problem
    problem = chosen, devices, replace(job, schedule="1f1b")  # of GPipe's step this is a part: ``phases``
    best, instance = best_wide_by_brute_force(*problem), instance_of(problem)
    certificate = prove_by_windows(instance, math.inf, effort())
    assert certificate.closed
    assert (best is None) == (not certificate.path)
    if best is not None:
        found = path_objective(instance, instance.arcs, certificate.path)
        assert found == pytest.approx(best.objective_seconds, rel=2e-4)
        assert certificate.bound_seconds <= best.objective_seconds * (1 + 1e-9)


def uneven() -> Instance:
    """Twenty layers on two kinds of three devices, with messages."""
    graph = chain(20, value_bytes=10**5)
    chosen = candidate(graph, {"fast": [1e-3 * (1 + k % 3) for k in range(20)], "slow": [3e-3] * 20}, 8)
    devices = cluster(*(device(f"d{n}", kind=("fast", "slow")[n % 2]) for n in range(6)))
    return build_instance(chosen, devices, Job(batch=8), "gpipe")


def test_integer_programs_close_windows_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vectors of devices cannot be listed: neither a floor nor least sums, programs alone."""
    instance = uneven()
    least = path_objective(instance, instance.arcs, best_path(instance))
    monkeypatch.setattr("autopart.planning.searching.bottleneck.MOST_STATES", 0)
    for module in (windows, settling):
        monkeypatch.setattr(module, "can_list", lambda instance: False)
    certificate = prove_by_windows(instance, least * 1.01, replace(effort(), gap=1e-3))
    assert certificate.closed
    assert certificate.num_programs > 0
    assert path_objective(instance, instance.arcs, certificate.path) <= least * (1 + 1e-3)
    assert certificate.bound_seconds <= least * (1 + 1e-9)


def test_programs_without_an_answer_leave_windows_open_with_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    instance, asked = uneven(), []

    def silent(*args: object, **words: object) -> Solution:
        asked.append(args)
        return Solution(outcome="unknown", path=(), objective_bound=-math.inf, solver="none", remark="no answer")

    least = path_objective(instance, instance.arcs, best_path(instance))
    monkeypatch.setattr("autopart.planning.searching.bottleneck.MOST_STATES", 0)
    for module in (windows, settling):
        monkeypatch.setattr(module, "can_list", lambda instance: False)
    monkeypatch.setattr(settling, "solve_path", silent)
    certificate = prove_by_windows(instance, least * 1.05, replace(effort(), gap=1e-3))
    assert not certificate.closed and certificate.remark == "no answer"
    assert len(asked) == windows.MOST_FAILURES
    assert 0.9 * least <= certificate.bound_seconds <= least * (1 + 1e-9)


def test_out_of_time_the_bound_holds_and_is_left_open() -> None:
    instance = uneven()
    path = best_path(instance)
    objective = path_objective(instance, instance.arcs, path)
    late = Effort(solver="auto", gap=1e-5, deadline=-1.0, clock=lambda: 0.0)
    certificate = prove_by_windows(instance, objective * 1.01, late)
    assert not certificate.closed
    assert 0 < certificate.bound_seconds <= objective * (1 + 1e-9)


def test_where_nothing_fits_the_search_ends() -> None:
    """Stages that the threshold program does not count: it has a path, the integer program has none."""
    instance = replace(uneven(), num_stages=uneven().end + 1)
    assert least_threshold(instance, math.inf, 1e-4).path
    certificate = prove_by_windows(instance, math.inf, effort())
    assert certificate.closed
    assert not certificate.path
    assert certificate.bound_seconds == math.inf
