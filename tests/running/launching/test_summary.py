from __future__ import annotations

from dataclasses import replace

import pytest

from autopart.running.launching.records import Act, RankResult
from autopart.running.launching.summary import single_run, summarize
from autopart.schema.plan import Plan
from autopart.schema.timeline import Event
from tests.running.handmade import make_plan
from tests.running.test_microbatch import make_graph


def result(rank: int, step_seconds: tuple[float, ...], forward: float, notes: tuple[str, ...] = ()) -> RankResult:
    times = (forward,) * len(step_seconds)
    return RankResult(
        rank=rank, device=f"cpu:{rank}", step_seconds=step_seconds, forward_seconds=times, backward_seconds=times,
        optimizer_seconds=(0.5,) * len(step_seconds), peak_bytes=10, memory_origin="counted", losses=(1.0, 2.0, 3.0),
        notes=notes, versions=("torch x",), pace_seconds=0.5,
    )


@pytest.fixture
def plan() -> Plan:
    return make_plan(make_graph(2, (2, 3)), (), num_microbatches=4)


def test_a_step_takes_as_long_as_its_slowest_rank(plan: Plan) -> None:
    ranks = [result(0, (3.0, 5.0, 4.0), 1.0), result(1, (4.0, 4.0, 4.5), 0.75)]
    found = summarize(plan, ranks[:1], None, "it was not asked for")
    graph = make_graph(2, (2, 3))
    two_layers = replace(graph, layers=(graph.layers[0], replace(graph.layers[0], name="more")), legal_cuts=(1,))
    two = make_plan(two_layers, (1,), num_microbatches=4)
    both = summarize(two, ranks, None, "it was not asked for")
    assert found.step_seconds == (3.0, 5.0, 4.0)
    assert both.step_seconds == (4.0, 5.0, 4.5)
    assert both.median_step_seconds == 4.5
    assert both.throughput_per_second == pytest.approx(8 / 4.5)
    assert both.stages[1].forward_seconds == pytest.approx(0.75 / 4)
    assert both.stages[1].busy_seconds == pytest.approx(2.0)
    assert both.stages[1].utilisation == pytest.approx(2.0 / 4.5)
    assert "not known: it was not asked for" in both.verdict


def test_a_slower_machine_is_told_from_a_wrong_prediction(plan: Plan) -> None:
    timed = replace(plan, stages=(replace(plan.stages[0], pace_seconds=0.4),))
    run = result(0, (5.0,), 1.0)  # its pace is 0.5 s
    assert summarize(timed, [run], None, "not asked").pace == pytest.approx(0.8)
    assert summarize(plan, [run], None, "not asked").pace is None


@pytest.mark.parametrize(
    ("alone_seconds", "words", "gain"), [(8.0, "Nothing was split", 1.0), (2.0, "Nothing was split", -0.5)]
)
def test_gain_is_relative_to_the_single_devices_throughput(
    plan: Plan, alone_seconds: float, words: str, gain: float
) -> None:
    alone = single_run(result(0, (alone_seconds,), 1.0), plan.job.batch)
    found = summarize(plan, [result(0, (4.0,), 1.0, ("Beware.",))], alone, "")
    assert found.gain == pytest.approx(gain)
    assert found.verdict.startswith(words)
    assert found.verdict.endswith("Beware.")


def test_the_last_step_is_told_event_by_event_and_what_is_the_ranks_with_its_first_stage(plan: Plan) -> None:
    acts = (
        Act(kind="receive", stage=1, microbatch=2, start_seconds=0.0, end_seconds=1.0, gradient=True),
        Act(kind="optimizer", stage=None, microbatch=None, start_seconds=1.0, end_seconds=3.0),
    )
    graph = make_graph(2, (2, 3))
    two_layers = replace(graph, layers=(graph.layers[0], replace(graph.layers[0], name="more")), legal_cuts=(1,))
    one_device = make_plan(two_layers, (1,), num_microbatches=4, ranks=(0, 0))
    found = summarize(one_device, [replace(result(0, (4.0,), 1.0), acts=acts)], None, "not asked").events
    assert found == (
        Event(stage=0, kind="optimizer", microbatch=None, start_seconds=1.0, end_seconds=3.0),
        Event(stage=1, kind="receive", microbatch=2, start_seconds=0.0, end_seconds=1.0, gradient=True),
    )


@pytest.mark.parametrize(("num_late", "more"), [(5, "theirs."), (6, "most on cpu:1: too many")])
def test_late_parts_of_all_ranks_are_told_once(num_late: int, more: str, plan: Plan) -> None:
    ranks = [replace(result(0, (4.0,), 1.0), num_paced=60, num_late=1),
             replace(result(1, (4.0,), 1.0), num_paced=60, num_late=num_late)]  # fmt: skip
    graph = make_graph(2, (2, 3))
    two_layers = replace(graph, layers=(graph.layers[0], replace(graph.layers[0], name="more")), legal_cuts=(1,))
    verdict = summarize(make_plan(two_layers, (1,), num_microbatches=4), ranks, None, "not asked").verdict
    assert verdict.count("own times") == 1
    assert f"{num_late + 1} of 120 parts of a step took longer than theirs" in verdict and more in verdict
    assert "own times" not in summarize(plan, [result(0, (4.0,), 1.0)], None, "not asked").verdict


@pytest.mark.parametrize(("losses", "change"), [((4.0, 2.0, 2.5), 0.2), ((), None)])
def test_what_codecs_saved_and_what_they_did_to_the_loss(
    plan: Plan, losses: tuple[float, ...], change: float | None
) -> None:
    run = replace(result(0, (4.0,), 1.0), sent_bytes=50, plain_bytes=100, compress="int8")  # its last loss is 3.0
    alone = single_run(replace(result(0, (4.0,), 1.0), losses=losses), plan.job.batch)
    found = summarize(plan, [run], alone, "").compression
    assert found is not None
    assert (found.codec, found.sent_bytes, found.plain_bytes) == ("int8", 50, 100)
    assert found.loss_change == (None if change is None else pytest.approx(change))
    assert summarize(plan, [replace(run, sent_bytes=100)], alone, "").compression is None, "nothing was encoded"
