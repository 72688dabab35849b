"""A model source for test_session.py; AUTOPART_TEST_FAULT says what goes wrong in the last rank."""

from __future__ import annotations

import os
import signal

import torch
from torch import nn

FAULT_AT_CALL = 3
num_calls = 0


def build_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.rand(8, 16),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.rand(8, 4),)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    global num_calls
    num_calls += 1
    if num_calls == FAULT_AT_CALL:
        FAULTS[os.environ.get("AUTOPART_TEST_FAULT", "")]()
    return nn.functional.mse_loss(output, target)


def fine() -> None:
    pass


def out_of_range() -> None:
    raise IndexError("label 9 is out of range")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def broken_if_unsplit() -> None:
    if os.environ["WORLD_SIZE"] == "1":
        raise RuntimeError("the unsplit model is broken")


FAULTS = {"": fine, "raise": out_of_range, "kill": killed, "unsplit": broken_if_unsplit}
