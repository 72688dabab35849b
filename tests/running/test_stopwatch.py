from __future__ import annotations

import pytest
import torch

from autopart.running.stopwatch import EventStopwatch, HostStopwatch, Lap, stopwatch_for
from tests.running.emulating.test_emulate import FakeTime


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
    taken = stopwatch.take()
    assert taken == Lap(forward_seconds=0.0, backward_seconds=0.0, optimizer_seconds=0.0) and not taken.acts


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


def test_what_passes_between_the_parts_of_a_step_is_waiting() -> None:
    time = FakeTime()
    stopwatch = HostStopwatch(clock=lambda: time.wall_seconds)
    time.work(9.0)  # before the step
    stopwatch.start()
    for number, waiting_seconds in enumerate((1.0, 1.5)):
        time.work(waiting_seconds)
        with stopwatch.part("forward", 1, number):
            time.work(2.0)
    time.work(0.5)
    with stopwatch.part("forward", 1, 1):  # the loss
        time.work(2.0)
    stopwatch.travels(sent_bytes=5)
    stopwatch.travels(received_bytes=7)
    time.work(0.25)
    with stopwatch.part("optimizer"):
        time.work(1.0)
    time.work(0.5)
    lap = stopwatch.take()
    assert (lap.forward_seconds, lap.receive_seconds, lap.send_seconds) == (6.0, 3.0, 0.75)
    assert (lap.sent_bytes, lap.received_bytes) == (5, 7)
    assert [(act.kind, act.stage, act.microbatch, act.start_seconds, act.end_seconds) for act in lap.acts] == [
        ("receive", 1, 0, 0.0, 1.0), ("forward", 1, 0, 1.0, 3.0), ("receive", 1, 1, 3.0, 4.5),
        ("forward", 1, 1, 4.5, 6.5), ("forward", 1, 1, 7.0, 9.0), ("optimizer", None, None, 9.25, 10.25),
    ]
    assert stopwatch.take() == Lap(forward_seconds=0.0, backward_seconds=0.0, optimizer_seconds=0.0)
