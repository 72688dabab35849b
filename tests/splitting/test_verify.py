from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autopart.errors import MismatchError
from autopart.splitting import verify
from tests.zoo import split


class Counting(nn.Module):
    """State that no trace sees."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.three(self.two(self.one(x)) * self.calls)  # type: ignore[no-any-return]


class Tripled(torch.autograd.Function):
    """Hands back three times the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 3


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = Tripled.apply(self.two(self.one(x)))  # type: ignore[no-untyped-call]
        return self.three(y)  # type: ignore[no-any-return]


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_different_outputs_name_the_first_layer() -> None:
    model = Counting().eval()
    with pytest.raises(MismatchError, match=r"output 0 differs .* by up to .* the first layer that differs is three"):
        verify(split(model, (X,), {}), model, (X,), {})


def test_different_gradients_name_the_first_layer() -> None:
    model = Custom().train()
    with pytest.raises(MismatchError, match=r"gradient of one\.\w+ differs .* \(4 of 6 do\).* is one$"):
        verify(split(model, (X,), {}), model, (X,), {})


def test_in_eval_mode_gradients_do_not_matter() -> None:
    model = Custom().eval()
    verify(split(model, (X,), {}), model, (X,), {})


class Rebinding(nn.Module):
    """Backward needs the buffer that forward replaces; torch.export writes into it instead."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))
        self.scale: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x) * self.scale
        self.scale = self.scale + 1
        return self.two(y)  # type: ignore[no-any-return]


def test_a_split_that_fails_is_a_mismatch() -> None:
    model = Rebinding().train()
    with pytest.raises(MismatchError, match=r"fails where the unsplit one does not: .* modified by an inplace"):
        verify(split(model, (X,), {}), model, (X,), {})


def _net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))


@pytest.mark.parametrize("training", [False, True])
def test_a_good_split_passes_and_nothing_is_left_behind(training: bool) -> None:
    model = _net().train(training)
    divided = split(model, (X,), {})
    model(X).sum().backward()
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    state = torch.get_rng_state()
    verify(divided, model, (X,), {})
    verify(divided, model, (X,), {}, loss_fn=nn.functional.mse_loss, targets=(torch.randn(3, 2),))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    left = [weight.grad for weight in model.parameters()]
    assert all(one is not None and torch.equal(one, other) for one, other in zip(left, gradients, strict=True))
    assert len(gradients) == 6
    assert model.training == training
    torch.set_rng_state(state)


def test_random_numbers_go_on_as_if_nothing_had_been() -> None:
    model = _net().train()
    divided = split(model, (X,), {})
    state = torch.get_rng_state()
    verify(divided, model, (X,), {})
    assert torch.equal(torch.get_rng_state(), state)


def test_not_a_number_equals_itself() -> None:
    model = _net().eval()
    verify(split(model, (X,), {}), model, (X * torch.nan,), {})
