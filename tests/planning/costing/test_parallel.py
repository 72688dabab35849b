from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError
from autopart.planning import check, plan
from autopart.planning.costing.memory import Rules, stage_memory
from autopart.planning.costing.parallel import (
    ALONE,
    Way,
    all_reduce_seconds,
    gradient_seconds,
    layer_times,
    way_facts,
    ways,
)
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.planning.problems import best_wide_by_brute_force, candidate, chain, cluster, device, link, wide_problems

Problem = tuple[Candidate, Cluster, Job]

FAST = link(latency_seconds=1e-6, bandwidth=1e12)


def test_a_ring_passes_two_times_all_but_one_part() -> None:
    each = link(latency_seconds=1e-3, bandwidth=1e6)
    assert all_reduce_seconds(each, 4, 8e6) == pytest.approx(2 * 3 * (1e-3 + 2.0))
    assert all_reduce_seconds(each, 1, 8e6) == 0.0


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 64), st.integers(1, 64))
def test_ways_are_powers_of_two_that_divide_the_batch(tensor: int, data: int, batch: int, num_devices: int) -> None:
    job = Job(batch=batch, mode="train", tensor_parallel=tensor, data_parallel=data, recompute="auto")
    found = ways(job, batch, num_devices)
    assert len(set(found)) == len(found)
    assert ALONE in found
    for way in found:
        assert way.width <= num_devices and way.tensor <= tensor and way.data <= data
        assert batch % way.data == 0
        assert way.tensor & (way.tensor - 1) == 0


def one_layer(*, batch_size: int = 4) -> Candidate:
    graph = chain(1, weight_bytes=4000, value_bytes=8000, saved_bytes=3400, training=True, batch_size=batch_size)
    return candidate(graph, {"fast": [1.0]}, 2)


@pytest.mark.parametrize("way", [Way(tensor=2), Way(data=2), Way(tensor=4, data=2)])
def test_a_group_is_as_many_times_faster_less_its_collectives(way: Way) -> None:
    chosen = one_layer()
    alone = layer_times(chosen, device("a"), None, ALONE, training=True)
    wide = layer_times(chosen, device("a"), FAST, way, training=True)
    collective = all_reduce_seconds(FAST, way.tensor, 8000 / way.data)
    assert wide.forward[0] == pytest.approx(alone.forward[0] / way.width + collective)
    assert wide.backward[0] == pytest.approx(alone.backward[0] / way.width + collective)
    assert wide.optimizer[0] == pytest.approx(alone.optimizer[0] / way.tensor)


def test_recomputing_runs_the_forward_again() -> None:
    chosen = one_layer()
    kept = layer_times(chosen, device("a"), FAST, Way(tensor=2), training=True)
    again = layer_times(chosen, device("a"), FAST, Way(tensor=2, recompute=True), training=True)
    assert again.forward == kept.forward
    assert again.backward[0] == pytest.approx(kept.backward[0] + kept.forward[0])


def test_replicas_exchange_the_gradients_they_hold() -> None:
    assert gradient_seconds(None, Way(tensor=2), 1e6) == 0.0
    assert gradient_seconds(FAST, Way(tensor=2, data=4), 1e6) == pytest.approx(all_reduce_seconds(FAST, 4, 1e6))


@pytest.mark.parametrize("way", [Way(tensor=2), Way(data=2), Way(recompute=True), Way(tensor=2, data=2)])
def test_a_way_never_needs_more_memory_than_alone(way: Way) -> None:
    graph = chain(6, weight_bytes=4000, value_bytes=800, saved_bytes=34000, training=True, batch_size=4)
    rules = Rules(training=True, schedule="1f1b", num_microbatches=8, optimizer="adamw")
    alone = stage_memory(way_facts(graph, 1, 5, ALONE), rules, 4)
    wide = stage_memory(way_facts(graph, 1, 5, way), rules, 4)
    assert wide.total < alone.total
    assert wide.parameters == -(-alone.parameters // way.tensor)
    assert wide.activations <= alone.activations


def test_weights_that_are_not_divided_are_whole_on_every_device() -> None:
    chosen = one_layer()
    known = replace(chosen.graph, weights=tuple(replace(each, most_devices=1) for each in chosen.graph.weights))
    whole = replace(chosen, graph=known)
    alone, wide = (layer_times(whole, device("a"), FAST, way, training=True) for way in (ALONE, Way(tensor=2)))
    assert wide == alone  # every device does all of it, and nothing is exchanged
    assert way_facts(known, 0, 1, Way(tensor=2)).weights == 4000
    assert way_facts(known, 0, 1, Way(tensor=2)).saved == way_facts(known, 0, 1, ALONE).saved


def test_a_weight_is_divided_by_no_more_devices_than_can() -> None:
    graph = one_layer().graph
    known = replace(graph, weights=tuple(replace(each, most_devices=2) for each in graph.weights))
    assert [way_facts(known, 0, 1, Way(tensor=count)).weights for count in (1, 2, 4)] == [4000, 2000, 4000]


def solve(problem: Problem, **words: Any) -> Any:
    chosen, devices, job = problem
    try:
        return plan((chosen,), devices, job, **words)
    except InfeasibleError:
        return None


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wide_problems())
def test_wide_plans_are_as_good_as_brute_force_and_checked(problem: Problem) -> None:
    found, best = solve(problem), best_wide_by_brute_force(*problem)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        check(found, problem[0])
        assert found.proof.bound_seconds <= best.objective_seconds * (1 + 1e-9)
        assert best.objective_seconds <= found.proof.objective_seconds * (1 + 1e-9)


def test_wide_stages_beat_narrow_ones_where_memory_is_short() -> None:
    graph = chain(2, weight_bytes=10**6, value_bytes=100, training=True, batch_size=2)
    chosen = candidate(graph, {"fast": [1.0, 1.0]}, 2)
    devices = cluster(*(device(f"d{n}", memory_bytes=5 * 10**6) for n in range(4)), links=(FAST,))
    job = Job(batch=4, mode="train", optimizer="adamw", tensor_parallel=2)
    found = plan((chosen,), devices, job)
    assert [stage.tensor_parallel for stage in found.stages] == [2, 2]
    (said,) = (each.message for each in found.warnings if each.code == "all-weights-shared")
    assert said.startswith("stage 0, 1: every weight is taken to be shared")
    assert all(stage.peak_bytes <= 5 * 10**6 for stage in found.stages)
    assert found.verdict.startswith("Use d0, d1, d2 and d3 with ")


def test_what_devices_have_to_keep_whole_is_said_and_counted() -> None:
    graph = chain(2, weight_bytes=[2 * 10**6, 10**6], value_bytes=100, training=True, batch_size=2)
    weights = tuple(replace(each, most_devices=most) for each, most in zip(graph.weights, (2, 1), strict=True))
    chosen = candidate(replace(graph, weights=weights), {"fast": [1.0, 1.0]}, 2)
    devices = cluster(*(device(f"d{n}", memory_bytes=5 * 10**6) for n in range(2)), links=(FAST,))
    found = plan((chosen,), devices, Job(batch=4, mode="train", optimizer="sgd", tensor_parallel=2, stages=1))
    assert found.stages[0].parameter_bytes == 2 * 10**6
    assert found.stages[0].forward_seconds == pytest.approx(0.5 + 1.0, rel=1e-3)
    said = {each.code: each.message for each in found.warnings}
    assert "all-weights-shared" not in said
    assert said["weights-kept-whole"].startswith("stage 0: of 3.00 MB of weights 1.00 MB cannot be divided")


def test_one_stage_on_two_devices_is_not_called_unsplit() -> None:
    graph = chain(1, weight_bytes=10**6, value_bytes=100, training=True, batch_size=2)
    devices = cluster(*(device(f"d{n}", memory_bytes=5 * 10**6) for n in range(2)), links=(FAST,))
    job = Job(batch=4, mode="train", optimizer="adamw", tensor_parallel=2)
    found = plan((candidate(graph, {"fast": [1.0]}, 2),), devices, job)
    assert found.verdict.startswith("Use d0 and d1 as one stage of 2 devices that share its layers, ")
    assert "which no single device can hold" in found.verdict
