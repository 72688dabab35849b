from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.running.emulating.emulate import Pace, TimetablePace, timetable
from tests.running.handmade import Skipping, make_plan, trace_skipping


class FakeTime:
    """A wall clock and a CPU clock that only work and sleep move."""

    def __init__(self) -> None:
        self.wall_seconds = 100.0
        self.cpu_seconds = 7.0
        self.slept_seconds: list[float] = []

    def work(self, cpu_seconds: float, *, waiting_seconds: float = 0.0) -> None:
        self.cpu_seconds += cpu_seconds
        self.wall_seconds += cpu_seconds + waiting_seconds

    def sleep(self, seconds: float) -> None:
        self.slept_seconds.append(seconds)
        self.wall_seconds += seconds

    def pace(self, speed: float) -> Pace:
        return Pace(speed=speed, clock=lambda: self.wall_seconds, cpu_clock=lambda: self.cpu_seconds, sleep=self.sleep)


def test_work_at_half_speed_takes_twice_its_cpu_time() -> None:
    time = FakeTime()
    with time.pace(0.5).keep():
        time.work(3.0)
    assert time.wall_seconds == pytest.approx(106.0)


def test_time_spent_waiting_for_a_core_counts_towards_the_deadline() -> None:
    time = FakeTime()
    with time.pace(0.5).keep():
        time.work(3.0, waiting_seconds=2.0)
    assert time.wall_seconds == pytest.approx(106.0)
    assert time.slept_seconds == [pytest.approx(1.0)]


def test_a_missed_deadline_is_not_slept_for() -> None:
    time = FakeTime()
    with time.pace(0.5).keep():
        time.work(3.0, waiting_seconds=10.0)
    assert time.slept_seconds == []


def test_full_speed_never_sleeps() -> None:
    time = FakeTime()
    with time.pace(1.0).keep():
        time.work(3.0)
    assert time.slept_seconds == []


def test_an_exception_is_not_delayed() -> None:
    time = FakeTime()
    with pytest.raises(ZeroDivisionError), time.pace(0.1).keep():
        time.work(1.0)
        raise ZeroDivisionError
    assert time.slept_seconds == []


@given(
    speed=st.floats(0.05, 1.0), cpu=st.floats(0.0, 10.0), waiting=st.floats(0.0, 10.0)
)
def test_the_duration_is_the_longer_of_the_deadline_and_the_work(speed: float, cpu: float, waiting: float) -> None:
    time = FakeTime()
    with time.pace(speed).keep():
        time.work(cpu, waiting_seconds=waiting)
    assert time.wall_seconds - 100.0 == pytest.approx(max(cpu / speed, cpu + waiting), abs=1e-9)


@pytest.mark.parametrize("speed", [0.0, -1.0, 1.5])
def test_a_speed_outside_its_range_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be in"):
        Pace(speed=speed)


def table_pace(time: FakeTime, *, in_two: frozenset[int] = frozenset()) -> TimetablePace:
    return TimetablePace(
        seconds={("forward", 0): 2.0, ("forward", 1): 5.0, ("backward", 1): 3.0}, in_two=in_two,
        clock=lambda: time.wall_seconds, sleep=time.sleep,
    )


def test_a_part_takes_its_time_of_the_table_and_late_ones_are_counted() -> None:
    time = FakeTime()
    pace = table_pace(time)
    for work, end in ((0.5, 102.0), (1.9, 104.0), (7.0, 111.0)):
        with pace.keep("forward", 0):
            time.work(work)
        assert time.wall_seconds == pytest.approx(end)
    with pace.keep("optimizer", None):
        time.work(1.0)
    assert time.wall_seconds == pytest.approx(112.0)
    assert (pace.num_parts, pace.num_late) == (3, 1)


def test_layers_and_loss_share_one_time() -> None:
    time = FakeTime()
    pace = table_pace(time, in_two=frozenset({1}))
    for _ in range(2):
        start = time.wall_seconds
        with pace.keep("forward", 1):
            time.work(1.0)
        assert time.wall_seconds == pytest.approx(start + 1.0)
        with pace.keep("forward", 1):
            time.work(0.5)
        assert time.wall_seconds == pytest.approx(start + 5.0)
        with pace.keep("backward", 1):
            time.work(1.0)
        assert time.wall_seconds == pytest.approx(start + 8.0)


def test_a_timetable_is_the_plans() -> None:
    graph = trace_skipping(Skipping(), 8, 4, training=True).graph
    plan = make_plan(graph, (2, 4), num_microbatches=4, mode="train", schedule="1f1b", ranks=(0, 1, 0))
    first, second = (timetable(plan, name) for name in plan.devices_by_rank)
    assert dict(first.seconds) == {
        ("optimizer", None): 0.0, ("forward", 0): 1e-3, ("backward", 0): 0.0, ("forward", 2): 1e-3, ("backward", 2): 0.0
    }
    assert first.in_two == frozenset({2}) and not second.in_two
    assert ("forward", 1) in second.seconds and ("forward", 2) not in second.seconds
