from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.planning import plan
from autopart.planning.costing.costs import Layout
from autopart.planning.searching import periods
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.chain import best_path, path_objective
from autopart.planning.searching.optimum import instances_of
from autopart.planning.searching.options import evaluate
from autopart.planning.simulating.simulate import StageTimes, step_seconds
from autopart.schema.device import Cluster
from autopart.schema.job import Job, ScheduleName
from autopart.schema.problem import Candidate
from tests.planning.problems import all_options, best_by_brute_force, candidate, chain, cluster, device, link, problems

Problem = tuple[Candidate, Cluster, Job]

MILLISECONDS = st.integers(0, 50).map(lambda k: k * 1e-3)
OPTIMIZERS = st.sampled_from([0.0, 0.0, 1e-3, 2e-2, 0.1, 0.4])


def largest_period(times: tuple[StageTimes, ...]) -> float:
    """As in the head of ``periods``, from the simulation's own figures."""
    crossing = [each.receive_seconds + each.return_seconds for each in times] + [0.0]
    return max(
        crossing[s] + each.forward_seconds + each.backward_seconds + crossing[s + 1] for s, each in enumerate(times)
    )


def last_update(times: tuple[StageTimes, ...]) -> float:
    """E of docs/model.md."""
    return max(
        each.optimizer_seconds
        - sum(before.backward_seconds for before in times[:s]) - sum(before.return_seconds for before in times[1:s])
        for s, each in enumerate(times)
    )


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[tuple[StageTimes, ...], int]:
    stages = tuple(
        StageTimes(
            forward_seconds=draw(MILLISECONDS) + 1e-3, backward_seconds=draw(MILLISECONDS) + 1e-3,
            receive_seconds=draw(MILLISECONDS) if s else 0.0, return_seconds=draw(MILLISECONDS) if s else 0.0,
            optimizer_seconds=draw(OPTIMIZERS),
        )
        for s in range(draw(st.integers(1, 6)))
    )
    return stages, draw(st.integers(len(stages), 12))


@settings(deadline=None, max_examples=150)
@given(pipeline=pipelines())
def test_a_step_of_1f1b_takes_at_most_what_the_periods_say(pipeline: tuple[tuple[StageTimes, ...], int]) -> None:
    times, num = pipeline
    once = sum(t.forward_seconds + t.backward_seconds + t.receive_seconds + t.return_seconds for t in times)
    found = step_seconds(times, "1f1b", num, training=True)
    assert found <= (once + (num - 1) * largest_period(times) + last_update(times)) * (1 + 1e-9)
    assert found >= max(num * (t.forward_seconds + t.backward_seconds) + t.optimizer_seconds for t in times) - 1e-9
    assert last_update(times) >= times[0].optimizer_seconds


@settings(deadline=None)
@given(pipeline=pipelines(), schedule=st.sampled_from(["gpipe", "1f1b"]))
def test_the_last_optimizer_ends_no_later_than_said(
    pipeline: tuple[tuple[StageTimes, ...], int], schedule: ScheduleName
) -> None:
    """Whatever the steps before it take; with one micro-batch, or where the first stage's optimizer is last, then."""
    times, num = pipeline
    bare = tuple(replace(each, optimizer_seconds=0.0) for each in times)
    for count in (num, 1) if schedule == "gpipe" else (num,):
        backwards, found = (step_seconds(each, schedule, count, training=True) for each in (bare, times))
        assert backwards + times[0].optimizer_seconds - 1e-9 <= found <= backwards + last_update(times) + 1e-9
        if count == 1 or last_update(times) == times[0].optimizer_seconds:
            assert found == pytest.approx(backwards + last_update(times))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_an_optimizer_begins_when_its_gradient_has_gone(schedule: ScheduleName) -> None:
    """Torch waits for what it sent: 3 s of gradient on the way are not hidden, 2 s of the first backward are."""
    first = StageTimes(forward_seconds=1, backward_seconds=2, receive_seconds=0, return_seconds=0, optimizer_seconds=1)
    times = first, replace(first, receive_seconds=1, return_seconds=3, optimizer_seconds=20)
    assert last_update(times) == 18
    bare = tuple(replace(each, optimizer_seconds=0.0) for each in times)
    backwards, found = (step_seconds(each, schedule, 4, training=True) for each in (bare, times))
    assert found == backwards + 18


def test_a_micro_batch_more_takes_a_period_more() -> None:
    """Links a third as slow as computing: by the times of the stages alone it would be 5 s, not 7."""
    first = StageTimes(forward_seconds=1, backward_seconds=2, receive_seconds=0, return_seconds=0, optimizer_seconds=0)
    times = first, *[replace(first, receive_seconds=1, return_seconds=1)] * 2
    assert largest_period(times) == 7
    few, many = (step_seconds(times, "1f1b", num, training=True) for num in (4, 16))
    assert many - few == pytest.approx(12 * 7)


def between_slow_links() -> Problem:
    """Seven equal layers; of three like devices one has a slow link on either side."""
    graph = chain(7, value_bytes=1000, training=True, batch_size=1, saved_bytes=10_000)
    chosen = candidate(graph, {"fast": [1e-2] * 7}, 16)
    near = [device(f"d{k}", memory_bytes=150_000) for k in range(3)]
    return chosen, cluster(*near, links=(link(bandwidth=1e5),)), Job(mode="train", batch=16, schedule="1f1b", stages=3)


def test_the_stage_in_the_middle_gets_less() -> None:
    """By its own time alone the middle stage may have as many layers as the last."""
    chosen, devices, job = between_slow_links()
    found = plan((chosen,), devices, job)
    assert [len(stage.layers) for stage in found.stages][1] == 2
    middle = found.stages[1]
    sent = sum(t.seconds + t.backward_seconds for t in found.transfers)
    period = middle.forward_seconds + middle.backward_seconds + sent
    once = sum(s.forward_seconds + s.backward_seconds for s in found.stages) + sent
    others = [s.forward_seconds + s.backward_seconds for s in found.stages]
    assert found.proof.objective_seconds == pytest.approx(
        once + 15 * max(period, *(each + 0.02 for each in others[::2])) + found.stages[0].optimizer_seconds
    )
    assert found.prediction.step_seconds <= found.proof.objective_seconds * (1 + 1e-9)


@settings(deadline=None, max_examples=25)
@given(problem=problems(training=True, max_layers=5))
def test_with_the_quickest_link_behind_no_plan_is_below(problem: Problem) -> None:
    """As where stages behind are too many to be told apart."""
    chosen, devices, job = problem
    job = replace(job, objective="throughput", schedule="1f1b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(periods, "MOST_ARCS", -1)
        instance = build_instance(chosen, devices, job, "1f1b")
    assert not instance.num_labels
    best = best_by_brute_force(chosen, devices, job)
    path = best_path(instance)
    assert bool(path) or best is None
    if best is not None:
        assert path_objective(instance, instance.arcs, path) <= best.objective_seconds * (1 + 1e-6)


def four_classes() -> Problem:
    """Devices with a link of their own for every pair: what is behind a stage matters as much as what is before."""
    graph = chain(6, value_bytes=[100, 900, 400, 700, 300, 800, 100], training=True, batch_size=1)
    chosen = candidate(graph, {"fast": [3e-3, 5e-3, 2e-3, 4e-3, 4e-3, 3e-3]}, 8)
    ends = [("a", "b", 3e5), ("a", "c", 1e6), ("a", "d", 1e5), ("b", "c", 2e5), ("b", "d", 1e6), ("c", "d", 5e5)]
    links = tuple(link(bandwidth=rate, ends=(one, other)) for one, other, rate in ends)
    devices = (device(f"d{name}", node=name) for name in "abcd")
    job = Job(mode="train", batch=8, optimizer="sgd", schedule="1f1b", gap=1e-4)
    return chosen, cluster(*devices, links=links), job


def test_links_behind_are_told_apart() -> None:
    chosen, devices, job = four_classes()
    instance = build_instance(chosen, devices, job, "1f1b")
    assert instance.num_labels == 16
    found, best = plan((chosen,), devices, job), best_by_brute_force(chosen, devices, job)
    assert best is not None and found.proof.outcome == "proven"
    assert found.proof.objective_seconds == pytest.approx(best.objective_seconds, rel=1e-4)


def test_gpipe_does_not_wait_for_what_it_sends() -> None:
    chosen, devices, job = four_classes()
    layout = Layout(num_microbatches=8, schedule="gpipe", boundaries=(0, 2, 4, 6), devices=("da", "db", "dc"))
    gpipe = evaluate(chosen, devices, job, layout)
    fused = evaluate(chosen, devices, job, replace(layout, schedule="1f1b"))
    assert gpipe.objective_seconds < fused.objective_seconds
    assert gpipe.step_seconds < fused.step_seconds


@pytest.mark.parametrize("memory_bytes", [15_000, 40_000])
def test_every_plan_of_a_free_schedule_is_in_one_of_the_problems(memory_bytes: int) -> None:
    """GPipe's stages fit everywhere, or not everywhere."""
    chosen, devices, job = four_classes()
    job = replace(job, schedule=None)
    capped = replace(devices, devices=tuple(replace(d, memory_bytes=memory_bytes) for d in devices.devices))
    fitting = [option for option in all_options(chosen, capped, job) if not option.misfit]
    best = min(option.objective_seconds for option in fitting)
    assert len(instances_of(chosen, capped, job)) == (2 if memory_bytes == 15_000 else 1)
    found = plan((chosen,), capped, job)
    assert found.proof.bound_seconds <= best * (1 + 1e-9)
    assert found.proof.outcome == "proven"
