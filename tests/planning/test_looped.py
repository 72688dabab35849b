from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError, UsageError
from autopart.planning import check, plan, simulate
from autopart.planning.check import CheckError
from autopart.planning.costing.costs import Layout, short_bytes
from autopart.planning.costing.onedevice import in_flight_of, together
from autopart.planning.costing.rules import Rules
from autopart.planning.looped import balance_seconds
from autopart.planning.searching.options import evaluate
from autopart.schema.device import Cluster
from autopart.schema.job import Job, ScheduleName
from autopart.schema.plan import Memory
from autopart.schema.problem import Candidate
from tests.planning.problems import GB, candidate, chain, cluster, device, link

NUM_LAYERS = 12
LOOPED: tuple[ScheduleName, ...] = ("interleaved", "looped-bfs", "zero-bubble")


def problem(
    num_microbatches: int = 4, *, memory_bytes: int = 100 * GB, speeds: tuple[float, ...] = (1.0, 1.0)
) -> tuple[Candidate, Cluster]:
    graph = chain(NUM_LAYERS, training=True, saved_bytes=4000, tied=(0, NUM_LAYERS - 1))
    devices = (
        device(f"d{index}", speed=speed, memory_bytes=memory_bytes) for index, speed in enumerate(speeds)
    )
    chosen = candidate(graph, {"fast": [1e-3] * NUM_LAYERS}, num_microbatches)
    return chosen, cluster(*devices, links=(link(bandwidth=1e9),))


def job(schedule: ScheduleName, num_microbatches: int = 4, stages: int | None = None) -> Job:
    return Job(mode="train", batch=num_microbatches, optimizer="adamw", schedule=schedule, stages=stages)


@pytest.mark.parametrize("schedule", LOOPED)
def test_a_plan_is_simulated_checked_and_bounded(schedule: ScheduleName) -> None:
    chosen, devices = problem()
    found = plan((chosen,), devices, job(schedule))
    assert found.schedule.name == schedule
    assert found.prediction.step_seconds == simulate(found).step_seconds == found.proof.objective_seconds
    assert found.proof.outcome == "feasible"
    assert found.proof.bound_seconds <= found.proof.objective_seconds
    assert "fractional balance" in found.proof.bound


def test_interleaving_shortens_the_bubble() -> None:
    chosen, devices = problem()
    one = plan((chosen,), devices, job("1f1b"))
    found = plan((chosen,), devices, job("interleaved"))
    assert len(found.stages) > len(found.devices_by_rank) == 2
    assert found.prediction.step_seconds < one.prediction.step_seconds
    assert found.prediction.bubble_fraction < one.prediction.bubble_fraction
    assert found.prediction.step_seconds >= found.proof.bound_seconds
    travelling = {(t.from_stage, t.to_stage) for t in found.transfers}
    assert all(found.ranks[source] != found.ranks[target] for source, target in travelling)


def test_so_many_stages_as_were_asked_for() -> None:
    chosen, devices = problem()
    found = plan((chosen,), devices, job("interleaved", stages=4))
    assert found.ranks == (0, 1, 0, 1)
    assert plan((chosen,), devices, job("interleaved", stages=3)).ranks == (0, 1, 0)
    with pytest.raises(UsageError, match="9 stages"):
        plan((chosen,), devices, job("interleaved", stages=9))


def test_a_faster_device_gets_more_layers_in_all_its_stages() -> None:
    chosen, devices = problem(speeds=(1.0, 0.5))
    found = plan((chosen,), devices, job("interleaved", stages=4))
    layers = dict.fromkeys(found.devices_by_rank, 0)
    for stage in found.stages:
        layers[stage.devices[0]] += len(stage.layers)
    assert layers["d0"] > layers["d1"]


def test_memory_of_all_stages_of_a_device_is_kept() -> None:
    chosen, devices = problem()
    roomy = plan((chosen,), devices, job("interleaved", stages=4))
    needed = max(
        sum(stage.peak_bytes for stage in roomy.stages if stage.devices == (name,)) for name in roomy.devices_by_rank
    )
    tight = Cluster(devices=tuple(replace(each, memory_bytes=needed) for each in devices.devices), links=devices.links)
    found = plan((chosen,), tight, job("interleaved", stages=4))
    for name in found.devices_by_rank:
        assert sum(stage.peak_bytes for stage in found.stages if stage.devices == (name,)) <= needed
    small = Cluster(devices=tuple(replace(each, memory_bytes=20_000) for each in devices.devices), links=devices.links)
    with pytest.raises(InfeasibleError):
        plan((chosen,), small, job("interleaved", stages=4))


def test_the_check_finds_a_device_used_twice_under_1f1b() -> None:
    chosen, devices = problem()
    found = plan((chosen,), devices, job("interleaved", stages=4))
    wrong = replace(found, schedule=replace(found.schedule, name="1f1b"), job=replace(found.job, schedule="1f1b"))
    with pytest.raises(CheckError, match="used twice"):
        check(wrong, chosen)


@pytest.mark.parametrize("words", [{"objective": "latency"}, {"data_parallel": 2}, {"recompute": "auto"}])
def test_what_is_not_planned_is_refused(words: dict[str, object]) -> None:
    chosen, devices = problem()
    with pytest.raises(UsageError, match="use --schedule 1f1b"):
        plan((chosen,), devices, replace(job("zero-bubble"), **words))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 20).map(lambda k: k * 1e-3), min_size=6, max_size=6), st.sampled_from(LOOPED),
    st.sampled_from([0.25, 0.5, 1.0]), st.lists(st.integers(0, 1), min_size=4, max_size=4), st.integers(8, 60),
)
def test_no_placement_is_below_the_bound(
    seconds: list[float], schedule: ScheduleName, speed: float, order: list[int], memory: int
) -> None:
    graph = chain(6, training=True, saved_bytes=500)
    chosen = candidate(graph, {"fast": seconds}, 4)
    devices = cluster(device("d0", memory_bytes=memory * 1000), device("d1", speed=speed, memory_bytes=memory * 1000))
    bound = balance_seconds(chosen, devices, job(schedule))
    for cuts in itertools.combinations(range(1, 6), len(order) - 1):
        option = evaluate(chosen, devices, job(schedule), Layout(
            num_microbatches=4, schedule=schedule, boundaries=(0, *cuts, 6), devices=tuple(f"d{k}" for k in order),
        ))
        if not option.misfit:
            assert option.step_seconds >= bound * (1 - 1e-9)
            assert short_bytes(option.costs, option.layout) == 0


def terms(workspace: int, not_at_once: int = 0) -> Memory:
    return Memory(parameters=10, gradients=10, optimizer=20, activations=30, workspace=workspace, communication=5,
                  not_at_once=not_at_once)


def test_stages_of_one_device_use_their_workspace_in_turn() -> None:
    found = together((terms(40), terms(7), terms(50)), ("a", "b", "a"))
    assert [memory.total for memory in found] == [75, 82, 125]
    assert together((terms(40), terms(7)), ("a", "b")) == (terms(40), terms(7))


def test_micro_batches_in_flight_follow_the_order() -> None:
    rules = Rules(training=True, schedule="interleaved", num_microbatches=8, optimizer="sgd")
    assert in_flight_of(rules, (0, 1, 0, 1)) == (4, 3, 2, 1)
    assert in_flight_of(replace(rules, schedule="looped-bfs"), (0, 1, 0, 1)) == (8, 8, 8, 8)
    assert in_flight_of(replace(rules, schedule="1f1b"), (0, 1)) == (2, 1)
    # two from forward to weights, and the gradients of those whose inputs' half is over
    assert in_flight_of(replace(rules, schedule="zero-bubble"), (0, 1)) == (3, 4)
