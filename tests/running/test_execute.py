from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autopart.pace import Pacer
from autopart.running.execute import Batch, drop_weights, run_steps
from autopart.running.stopwatch import HostStopwatch, Stopwatch
from autopart.running.unsplit import UnsplitModel
from tests.running.emulating.test_emulate import FakeTime


class FakeMeter:
    origin = "fake"

    def __init__(self) -> None:
        self.num_observed = 0

    def observe(self) -> None:
        self.num_observed += 1

    def peak_bytes(self) -> int:
        return 123


class FakeWork:
    """A step that takes one second more each time."""

    notes = ("a note",)

    def __init__(self, time: FakeTime) -> None:
        self.stopwatch: Stopwatch = HostStopwatch(clock=lambda: time.wall_seconds)
        self._time = time
        self._num_steps = 0

    def step(self, *args: Any, target: Any = None, **kwargs: Any) -> torch.Tensor:
        self._num_steps += 1
        with self.stopwatch.part("forward"):
            self._time.work(float(self._num_steps))
        return torch.tensor(float(self._num_steps))


def test_warm_up_steps_are_done_and_not_counted() -> None:
    time, meter, done = FakeTime(), FakeMeter(), []
    batch = Batch(args=(), kwargs={}, target=None)
    result = run_steps(
        FakeWork(time), batch, rank=1, device="cpu:1", steps=3, warmup=2, training=True, meter=meter,
        barrier=lambda: time.work(50.0), done=lambda: done.append(1), clock=lambda: time.wall_seconds,
        pacer=Pacer(torch.device("cpu"), clock=iter(range(100)).__next__),
    )
    assert result.pace_seconds == 1.0
    assert result.step_seconds == result.forward_seconds == (3.0, 4.0, 5.0)
    assert result.backward_seconds == (0.0, 0.0, 0.0)
    assert result.losses == (3.0, 4.0, 5.0)
    assert (result.peak_bytes, result.memory_origin, result.notes) == (123, "fake", ("a note",))
    assert meter.num_observed == len(done) == 5


def test_only_named_weights_are_kept_tied_ones_under_any_name() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    drop_weights(model, {"1.weight", "2.running_mean"})
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    assert sizes == {
        "0.weight": 6, "1.weight": 6, "0.bias": 0, "1.bias": 0, "2.weight": 0, "2.bias": 0, "2.running_mean": 3,
        "2.running_var": 0, "2.num_batches_tracked": 0,
    }


@pytest.mark.parametrize("optimizer", ["none", "sgd", "adam", "adamw"])
def test_the_unsplit_model_trains_as_in_any_loop(optimizer: str) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    unsplit = UnsplitModel(
        model, "train", loss_fn=nn.functional.mse_loss, optimizer=optimizer, stopwatch=HostStopwatch()
    )
    inputs, target = torch.rand(4, 3), torch.rand(4, 2)
    expected = nn.functional.mse_loss(model(inputs), target).detach()
    torch.testing.assert_close(unsplit.step(inputs, target=target), expected)
    assert torch.equal(model.weight, before) is (optimizer == "none")
    lap = unsplit.stopwatch.take()
    assert min(lap.forward_seconds, lap.backward_seconds, lap.optimizer_seconds) > 0


def test_the_unsplit_model_infers_without_gradients() -> None:
    unsplit = UnsplitModel(nn.Linear(3, 2), "infer", loss_fn=None, optimizer="none", stopwatch=HostStopwatch())
    assert not unsplit.step(torch.rand(4, 3)).requires_grad
