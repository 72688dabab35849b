from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.planning import hidden, hiding_note, plan, simulate
from autopart.planning.simulating.simulate import StageTimes, run_schedule, step_seconds
from autopart.schema.device import Device
from autopart.schema.job import Job, Mode, ScheduleName
from autopart.schema.plan import Plan
from tests.planning.problems import candidate, chain, cluster, device, link

GLOO_SECONDS = {  # of a step: tests/benchmarks/slowlink.py over a real link, two stages, 8 micro-batches, 1 MiB
    ("1f1b", 0): 2.423, ("1f1b", 8): 1.807, ("interleaved", 0): 1.571, ("interleaved", 1): 1.528,
    ("interleaved", 2): 1.424, ("interleaved", 16): 1.374, ("gpipe", 16): 1.643,
}  # fmt: skip


def stage(forward: float, backward: float, receive: float) -> StageTimes:
    return StageTimes(
        forward_seconds=forward, backward_seconds=backward, receive_seconds=receive, return_seconds=receive,
        optimizer_seconds=0.0,
    )


def make(schedule: ScheduleName | None, *, bandwidth: float, mode: Mode = "train") -> Plan:
    """Six layers halved over two processors, 8 micro-batches."""
    graph = chain(6, training=mode == "train", value_bytes=100_000, saved_bytes=200_000)
    ends = cluster(*(here(device(name)) for name in "ab"), links=(link(bandwidth=bandwidth),))
    job = Job(batch=8, mode=mode, schedule=schedule, microbatches=8, stages=2, method="even")
    return plan((candidate(graph, {"fast": [1e-3] * 6}, 8),), ends, job)


def here(absent: Device) -> Device:
    return replace(absent, backend="cpu", torch_device="cpu")


@pytest.mark.parametrize(("schedule", "prefetch"), GLOO_SECONDS)
def test_what_gloo_was_measured_to_take(schedule: ScheduleName, prefetch: int) -> None:
    stages = (stage(0.04, 0.08, 0.0), stage(0.04, 0.08, 0.084))
    found = step_seconds(stages, schedule, 8, training=True, prefetch=prefetch)
    assert found == pytest.approx(GLOO_SECONDS[schedule, prefetch], rel=0.05)


times = st.integers(1, 50).map(lambda k: k * 1e-3)


@given(
    st.lists(st.tuples(times, times, times), min_size=2, max_size=4), st.integers(1, 6),
    st.sampled_from(["gpipe", "1f1b", "interleaved"]),
)
def test_what_is_posted_as_early_as_can_be_is_never_later(
    rows: list[tuple[float, float, float]], num: int, schedule: ScheduleName
) -> None:
    stages = tuple(stage(f, b, r if index else 0.0) for index, (f, b, r) in enumerate(rows))
    late = step_seconds(stages, schedule, num, training=True)
    early = run_schedule(stages, schedule, num, training=True, prefetch=2 * num)
    assert early.step_seconds <= late + 1e-9
    busiest = max(num * (s.forward_seconds + s.backward_seconds) for s in stages)
    wire = max(num * s.receive_seconds for s in stages)
    assert early.step_seconds >= max(busiest, wire) - 1e-9
    at = {(e.stage, e.kind, e.microbatch): e for e in early.events if e.kind != "receive"}
    for index in range(1, len(stages)):
        for m in range(num):
            arrives = at[index - 1, "forward", m].end_seconds + stages[index].receive_seconds
            assert at[index, "forward", m].start_seconds >= arrives - 1e-9


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_slow_link_is_hidden_and_a_fast_one_left_alone(mode: Mode) -> None:
    slow, fast = (make(None, bandwidth=bandwidth, mode=mode) for bandwidth in (5e7, 1e12))
    found = hidden(slow)
    assert found.schedule.prefetch >= 8
    assert found.prediction.step_seconds == simulate(found).step_seconds < 0.97 * simulate(slow).step_seconds
    assert found.prediction.throughput_per_second == pytest.approx(8 / found.prediction.step_seconds)
    assert found.prediction.bubble_fraction < slow.prediction.bubble_fraction
    assert "Receives are posted up to" in hiding_note(slow, found)
    assert hidden(fast) is fast and hiding_note(fast, hidden(fast)) == ""


def test_the_deeper_warm_up_is_taken_where_the_schedule_was_left_to_us() -> None:
    asked = make("1f1b", bandwidth=5e7)
    left = replace(asked, job=replace(asked.job, schedule=None))
    assert hidden(asked).schedule.name == "1f1b"
    found = hidden(left)
    assert found.schedule.name == "interleaved" and found.schedule.warmup[0] > left.schedule.warmup[0]
    assert found.prediction.step_seconds < hidden(asked).prediction.step_seconds
    first, before = found.stages[0].memory, left.stages[0].memory
    assert first.activations == before.activations * 3 // 2
    assert first.communication == before.communication + 8 * sum(each.bytes for each in left.transfers)
    assert "interleaved's deeper warm-up" in hiding_note(left, found)


def test_memory_that_is_not_there_is_not_taken() -> None:
    asked = make("1f1b", bandwidth=5e7)
    left = replace(asked, job=replace(asked.job, schedule=None))
    needed = hidden(asked).stages
    tight = tuple(replace(s, capacity_bytes=n.peak_bytes) for s, n in zip(left.stages, needed, strict=True))
    assert hidden(replace(left, stages=tight)).schedule.name == "1f1b"
    full = tuple(replace(each, capacity_bytes=each.peak_bytes) for each in left.stages)
    assert hidden(replace(left, stages=full)).schedule.prefetch == 0


def test_what_is_asked_for_is_done_and_graphics_cards_are_left_alone() -> None:
    fast = make("gpipe", bandwidth=1e12)
    assert hidden(fast, 3).schedule.prefetch == 3 and hidden(fast, 0) is fast
    slow = make("gpipe", bandwidth=5e7)
    cards = tuple(replace(each, backend="cuda") for each in slow.cluster.devices)
    on_cards = replace(slow, cluster=replace(slow.cluster, devices=cards))
    assert hidden(on_cards) is on_cards
    once = hidden(slow)
    assert hidden(once) is once
    assert hidden(once, 0).prediction.step_seconds == pytest.approx(slow.prediction.step_seconds)
