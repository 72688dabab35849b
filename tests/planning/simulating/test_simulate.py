from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.planning import plan
from autopart.planning.simulating.simulate import StageTimes, run_schedule, simulate, warmup
from autopart.schema.job import Job, ScheduleName
from autopart.schema.timeline import Timeline
from tests.planning.problems import candidate, chain, cluster, device


def stage(forward: float, backward: float = 0.0, receive: float = 0.0, optimizer: float = 0.0,
          exchanges_with: tuple[int, ...] = ()) -> StageTimes:
    return StageTimes(forward_seconds=forward, backward_seconds=backward, receive_seconds=receive,
                      return_seconds=receive, optimizer_seconds=optimizer, exchanges_with=exchanges_with)


def drawn(timeline: Timeline) -> list[str]:
    """One line per stage: what, micro-batch @ start."""
    letters = {"forward": "F", "backward": "B", "receive": "r", "optimizer": "U"}
    lines = []
    for index in range(timeline.num_stages):
        events = [e for e in timeline.events if e.stage == index]
        lines.append(" ".join(
            f"{letters[e.kind]}{'' if e.microbatch is None else e.microbatch}@{e.start_seconds:g}" for e in events
        ))
    return lines


def test_inference() -> None:
    timeline = run_schedule((stage(1), stage(2, receive=1)), "gpipe", 2, training=False)
    assert drawn(timeline) == ["F0@0 F1@1", "r0@1 F0@2 r1@4 F1@5"]
    assert timeline.step_seconds == 7


def test_gpipe() -> None:
    timeline = run_schedule((stage(1, 2), stage(1, 2)), "gpipe", 2, training=True)
    assert drawn(timeline) == [
        "F0@0 F1@1 r0@5 B0@5 r1@7 B1@7 U@9",
        "r0@1 F0@1 r1@2 F1@2 B0@3 B1@5 U@7",
    ]
    assert timeline.step_seconds == 9


def test_one_forward_one_backward() -> None:
    timeline = run_schedule((stage(1, 2), stage(1, 2)), "1f1b", 3, training=True)
    assert drawn(timeline) == [
        "F0@0 F1@1 r0@4 B0@4 F2@6 r1@7 B1@7 r2@10 B2@10 U@12",
        "r0@1 F0@1 B0@2 r1@4 F1@4 B1@5 r2@7 F2@7 B2@8 U@10",
    ]


def test_stages_that_share_a_weight_update_together() -> None:
    stages = (stage(1, 1, optimizer=1, exchanges_with=(1,)), stage(1, 1, optimizer=3, exchanges_with=(0,)))
    timeline = run_schedule(stages, "gpipe", 1, training=True)
    assert [e.start_seconds for e in timeline.events if e.kind == "optimizer"] == [4, 4]
    assert timeline.step_seconds == 7


@pytest.mark.parametrize(("schedule", "low", "high"), [("gpipe", 2.42, 2.515), ("1f1b", 2.39, 2.515)])
def test_what_gloo_was_measured_to_take(schedule: ScheduleName, low: float, high: float) -> None:
    """Two stages, 8 micro-batches of 40 / 80 ms, 84 ms per message: 2495-2515 ms and 2422-2499 ms (a shaped link)."""
    stages = (stage(0.04, 0.08), stage(0.04, 0.08, 0.084))
    assert low < run_schedule(stages, schedule, 8, training=True).step_seconds < high


times = st.integers(1, 50).map(lambda k: k * 1e-3)
stage_lists = st.lists(st.tuples(times, times, times), min_size=1, max_size=5)


@given(stage_lists, st.integers(1, 9))
def test_inference_takes_the_flow_shop_formula(rows: list[tuple[float, float, float]], num: int) -> None:
    stages = tuple(stage(f, 0.0, r if index else 0.0) for index, (f, _, r) in enumerate(rows))
    seconds = [s.forward_seconds + s.receive_seconds for s in stages]
    step = run_schedule(stages, "gpipe", num, training=False).step_seconds
    assert step == pytest.approx(sum(seconds) + (num - 1) * max(seconds))


@given(stage_lists, st.integers(1, 9))
def test_gpipe_without_transfers_takes_both_flow_shops(rows: list[tuple[float, float, float]], num: int) -> None:
    stages = tuple(stage(f, b) for f, b, _ in rows)
    forward, backward = ([row[k] for row in rows] for k in (0, 1))
    expected = sum(forward) + sum(backward) + (num - 1) * (max(forward) + max(backward))
    assert run_schedule(stages, "gpipe", num, training=True).step_seconds == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.tuples(times, times, times, times), min_size=1, max_size=5), st.integers(1, 9))
def test_gpipe_takes_both_flow_shops_and_the_optimizer_that_ends_last(
    rows: list[tuple[float, float, float, float]], num: int
) -> None:
    """Stage s is through when the stage before begins its last backward: then the last gradient is there."""
    stages = tuple(stage(f, b, r if index else 0.0, 4 * u) for index, (f, b, r, u) in enumerate(rows))
    there = [s.receive_seconds + s.forward_seconds for s in stages]
    back = [s.backward_seconds + after for s, after in zip(stages, [*(s.return_seconds for s in stages[1:]), 0.0],
                                                           strict=True)]
    forwards = sum(there) + (num - 1) * max(there)
    ends = [forwards + sum(back[s:]) + (num - 1) * max(back[s:]) for s in range(len(stages))]
    ends[1:] = [end - before.backward_seconds for end, before in zip(ends, stages[:-1], strict=False)]
    step = run_schedule(stages, "gpipe", num, training=True).step_seconds
    assert step == pytest.approx(max(end + s.optimizer_seconds for end, s in zip(ends, stages, strict=True)))


@given(stage_lists, st.integers(1, 9), st.sampled_from(["gpipe", "1f1b"]))
def test_every_stage_does_everything_once_and_nothing_at_once(
    rows: list[tuple[float, float, float]], num: int, schedule: ScheduleName
) -> None:
    stages = tuple(stage(f, b, r if index else 0.0, f) for index, (f, b, r) in enumerate(rows))
    timeline = run_schedule(stages, schedule, num, training=True)
    for index in range(len(stages)):
        own = [e for e in timeline.events if e.stage == index and e.kind != "receive"]
        expected = [(kind, m) for kind in ("backward", "forward") for m in range(num)]
        assert sorted((e.kind, e.microbatch or 0) for e in own) == sorted([*expected, ("optimizer", 0)])
        assert all(a.end_seconds <= b.start_seconds + 1e-12 for a, b in pairwise(own))


@given(stage_lists, st.integers(1, 9))
def test_values_are_used_after_they_arrive(rows: list[tuple[float, float, float]], num: int) -> None:
    stages = tuple(stage(f, b, r if index else 0.0) for index, (f, b, r) in enumerate(rows))
    timeline = run_schedule(stages, "1f1b", num, training=True)
    at = {(e.stage, e.kind, e.microbatch): e for e in timeline.events if e.kind != "receive"}
    for index in range(1, len(stages)):
        for m in range(num):
            sent = at[index - 1, "forward", m].end_seconds
            assert at[index, "forward", m].start_seconds >= sent + stages[index].receive_seconds - 1e-12
            returned = at[index, "backward", m].end_seconds
            assert at[index - 1, "backward", m].start_seconds >= returned + stages[index].return_seconds - 1e-12


def test_warmup() -> None:
    assert warmup("1f1b", 3, 2, True) == (2, 2, 1)
    assert warmup("gpipe", 2, 4, True) == (4, 4)
    assert warmup("gpipe", 2, 4, False) == (0, 0)


def test_simulate_draws_a_plan() -> None:
    graph = chain(6, training=True)
    chosen = candidate(graph, {"fast": [1e-3] * 6}, 4)
    result = plan((chosen,), cluster(device("a"), device("b")), Job(batch=4, mode="train", optimizer="sgd"))
    assert simulate(result).step_seconds == result.prediction.step_seconds
