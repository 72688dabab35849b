from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from autopart.pythonstate import PythonState
from autopart.restoring import fresh, left_as_it_was


class Messy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(3))
        self.plain, self.calls, self.log = torch.zeros(3), 0, [1]
        self.dice = np.random.default_rng(0)
        self.mean: torch.Tensor
        self.count: torch.Tensor

    def mess(self) -> None:
        self.calls += 1
        self.log.append(2)
        self.mean = self.mean + 1
        self.count += 1
        self.plain += 1
        self.weight.grad = torch.ones(3)
        self.late = torch.ones(1)
        self.dice.random()


def test_everything_is_put_back() -> None:
    model = Messy()
    mean, count, gradient, registers = model.mean, model.count, torch.full((3,), 5.0), model._buffers
    model.weight.grad = gradient
    state, roll = PythonState(model), model.dice.bit_generator.state
    with left_as_it_was(model):
        model.mess()
        state.note()
        assert {name for _, name in state.changed} == {"calls", "log", "late"}
    state.note()
    assert not state.changed
    assert model.mean is mean and model.count is count and model._buffers is registers
    assert not mean.any() and not count.any() and not model.plain.any()
    assert model.weight.grad is gradient
    assert (model.calls, model.log, model.dice.bit_generator.state) == (0, [1], roll)
    assert not hasattr(model, "late")


def test_what_was_not_written_keeps_its_version() -> None:
    model = Messy()
    version = model.count._version
    with left_as_it_was(model):
        pass
    assert model.count._version == version


def test_random_numbers_of_all_kinds_start_alike_and_go_on() -> None:
    def drawn() -> tuple[float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand())

    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    before = state()
    with left_as_it_was(nn.Identity(), 3):
        one = drawn()
    with left_as_it_was(nn.Identity(), 3):
        assert drawn() == one
    assert state() == before


def test_arguments_are_copied_deep() -> None:
    x, numbers = torch.zeros(2, requires_grad=True), {"a": [torch.zeros(1)]}
    one, other = fresh((x, numbers))
    other["a"][0] += 1
    assert one is not x and one.requires_grad and not numbers["a"][0].any()
