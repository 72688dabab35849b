from __future__ import annotations

import contextlib
from typing import ClassVar

import pytest
import torch

from autopart.profiling.measuring.timing import laps_on, median_and_spread, num_threads_set, own_stream


def test_laps_are_the_times_between_marks() -> None:
    readings = iter([1.0, 1.5, 4.0])
    laps = laps_on(torch.device("cpu"), lambda: next(readings))
    for _ in range(3):
        laps.mark()
    assert laps.seconds() == [0.5, 2.5]


def test_median_and_spread() -> None:
    assert median_and_spread([3.0, 1.0, 2.0]) == (2.0, 0.0)
    median, spread = median_and_spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert median == 3.0
    assert spread == (4.5 - 1.5) / 3.0
    assert median_and_spread([0.0] * 5) == (0.0, 0.0)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with num_threads_set(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with num_threads_set(None):
        assert torch.get_num_threads() == before


class FakeStream(str):
    """A stream by its name; notes who waits for whom."""

    waits: ClassVar[list[tuple[str, str]]] = []

    def wait_stream(self, other: str) -> None:
        self.waits.append((str(self), str(other)))


class FakeEvent:
    """An event of a card on which 2 ms pass from one to the next."""

    recorded: ClassVar[list[str]] = []

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: str) -> None:
        self.recorded.append(stream)
        self.at = 2.0 * len(self.recorded)

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at - self.at


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch.cuda as it would be with a card; the devices that were waited for."""
    devices: list[str] = []
    FakeStream.waits.clear()
    FakeEvent.recorded.clear()
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("own"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream("current"))
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: devices.append(str(device)))
    return devices


def test_cuda_laps_are_events_in_the_current_stream(waited: list[str]) -> None:
    laps = laps_on(torch.device("cuda:0"), lambda: pytest.fail("the clock says nothing about a card"))
    for _ in range(3):
        laps.mark()
    assert laps.seconds() == [0.002, 0.002]
    assert FakeEvent.recorded == ["current"] * 3 and waited == ["cuda:0"]


@pytest.mark.usefixtures("waited")
def test_the_stream_of_ones_own_waits_for_the_current_one_and_is_waited_for() -> None:
    with own_stream(torch.device("cuda:0")):
        assert FakeStream.waits == [("own", "current")]
    assert FakeStream.waits == [("own", "current"), ("current", "own")]


@pytest.mark.usefixtures("waited")
def test_the_processor_needs_no_stream() -> None:
    with own_stream(torch.device("cpu")):
        assert FakeStream.waits == []
