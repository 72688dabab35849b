from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autopart.planning import plan
from autopart.planning.costing.costs import Layout
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.chain import best_path, path_objective
from autopart.planning.searching.options import evaluate
from autopart.planning.searching.phases import between
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import best_by_brute_force, candidate, chain, cluster, device, link, problems

Problem = tuple[Candidate, Cluster, Job]

thorough = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def uneven_kinds(problem: Problem, backward: float) -> Problem:
    """One kind is slow backward, so that the longest forward and the longest backward are of two stages."""
    chosen, devices, job = problem
    kinds = tuple(
        replace(kind, backward_seconds=tuple(backward * each for each in kind.backward_seconds))
        if kind.kind == "slow" else kind for kind in chosen.profile.kinds
    )
    return replace(chosen, profile=replace(chosen.profile, kinds=kinds)), devices, job


@thorough
@given(problem=problems(training=True, max_layers=6, max_devices=4), backward=st.sampled_from([0.2, 1.0, 4.0]))
def test_a_plan_for_gpipe_is_what_brute_force_finds(problem: Problem, backward: float) -> None:
    chosen, devices, job = uneven_kinds(problem, backward)
    job = replace(job, schedule="gpipe", objective="throughput")
    best = best_by_brute_force(chosen, devices, job)
    assume(best is not None and best.layout.num_stages > 1)
    assume(all(len(layer.weights) == 1 for layer in chosen.graph.layers))  # of tied ones the cheapest link is charged
    assert best is not None
    found = plan((chosen,), devices, job)
    assert found.proof.objective_seconds == pytest.approx(best.objective_seconds, rel=2e-4)
    assert found.proof.bound_seconds <= best.objective_seconds * (1 + 1e-9)
    assert found.proof.outcome == "proven"


@thorough
@given(problem=problems(training=True, max_layers=6, max_devices=3), share=st.floats(0.0, 1.0))
def test_a_range_is_never_above_the_plans_in_it(problem: Problem, share: float) -> None:
    """And exact for plans whose longest forward is its low end."""
    chosen, devices, job = uneven_kinds(problem, 0.5)
    job = replace(job, schedule="gpipe", objective="throughput")
    instance = build_instance(chosen, devices, job, "gpipe")
    path = best_path(instance)
    assume(instance.in_phases and len(path) > 1)
    arcs, some = instance.arcs, list(path)
    ahead = float(arcs.ahead[some].max())
    both = arcs.sum_along(path) + instance.repeats * (ahead + float((arcs.seconds - arcs.ahead)[some].max()))
    for low, high in ((share * ahead, ahead * (1 + share) + 1e-9), (ahead, ahead + 1e-9)):
        part = between(instance, low, high)
        kept = (arcs.ahead < high).nonzero()[0].tolist()
        assert set(path) <= set(kept)
        value = path_objective(part, part.arcs, tuple(kept.index(arc) for arc in path))
        assert value <= both * (1 + 1e-9)
    assert value == pytest.approx(both)


def two_phases() -> Problem:
    """A kind that is quick forward beside one that is quick backward, and a link that counts."""
    graph = chain(8, value_bytes=20_000, training=True)
    chosen = candidate(graph, {"fast": [1e-2] * 8, "slow": [2e-2] * 8}, 8)
    devices = cluster(*(device(f"{kind}{n}", kind=kind) for kind in ("fast", "slow") for n in (0, 1)),
                      links=(link(bandwidth=1e7),))
    return uneven_kinds((chosen, devices, Job(mode="train", batch=8, schedule="gpipe")), 0.25)


def test_the_longest_forward_and_backward_of_two_stages_add_up() -> None:
    chosen, devices, job = two_phases()
    layout = Layout(num_microbatches=8, schedule="gpipe", boundaries=(0, 4, 8), devices=("fast0", "slow0"))
    option = evaluate(chosen, devices, job, layout)
    one, other = option.costs
    assert one.forward_seconds < other.forward_seconds and one.backward_seconds > other.backward_seconds
    rounds = other.forward_seconds + other.receive_seconds + one.backward_seconds + other.return_seconds
    assert option.objective_seconds == pytest.approx(
        one.stage_seconds + other.stage_seconds + 7 * rounds + one.optimizer_seconds, rel=1e-6
    )
    assert option.step_seconds == pytest.approx(option.objective_seconds)
    found = plan((chosen,), devices, job)
    assert found.proof.outcome == "proven"
    assert found.prediction.step_seconds == pytest.approx(found.proof.objective_seconds)


def test_out_of_time_gpipes_bound_is_that_of_one_largest_time() -> None:
    chosen, devices, job = two_phases()
    late = time.monotonic() + 1e9
    found = plan((chosen,), devices, replace(job, time_limit_seconds=1e-9), clock=lambda: late)
    assert found.proof.bound_seconds <= found.proof.objective_seconds
