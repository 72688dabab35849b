from __future__ import annotations

import pytest
import torch

from autopart.running.stopwatch import EventStopwatch, HostStopwatch, Lap, stopwatch_for
from tests.running.test_emulate import FakeTime


def test_parts_are_summed_until_they_are_taken() -> None:
    time = FakeTime()
    stopwatch = HostStopwatch(clock=lambda: time.wall_seconds)
    for _ in range(2):
        with stopwatch.part("forward"):
            time.work(1.0)
        time.work(5.0)
        with stopwatch.part("backward"):
            time.work(2.0)
    assert stopwatch.take() == Lap(forward_seconds=2.0, backward_seconds=4.0, optimizer_seconds=0.0)
    assert stopwatch.take() == Lap(forward_seconds=0.0, backward_seconds=0.0, optimizer_seconds=0.0)


def test_an_emulated_device_is_busy_while_it_sleeps() -> None:
    time = FakeTime()
    stopwatch = HostStopwatch(time.pace(0.25), clock=lambda: time.wall_seconds)
    with stopwatch.part("optimizer"):
        time.work(1.0)
    assert stopwatch.take().optimizer_seconds == pytest.approx(4.0)


def test_the_device_decides_how_it_is_timed() -> None:
    assert isinstance(stopwatch_for(torch.device("cpu"), 0.5), HostStopwatch)
    assert isinstance(stopwatch_for(torch.device("cuda:0")), EventStopwatch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_time_a_cuda_device() -> None:
    device = torch.device("cuda:0")
    stopwatch = EventStopwatch(device)
    with stopwatch.part("forward"):
        torch.rand(512, 512, device=device).matmul(torch.rand(512, 512, device=device))
    assert stopwatch.take().forward_seconds > 0
