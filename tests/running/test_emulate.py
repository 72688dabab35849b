from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.running.emulate import Pace


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
