from __future__ import annotations

import pytest
import torch
from torch import nn

from autopart.errors import MismatchError
from autopart.splitting import SplitModule, verify
from autopart.tracing import trace
from tests.zoo import edges, split, stages_of


class Scaling(nn.Module):
    """An attribute that a trace fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.factor = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.two(self.one(x)) * self.factor)  # type: ignore[no-any-return]


class Detaching(nn.Module):
    """Loses the gradient between its layers, or of all of them, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.detaches = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.two(self.one(x))
        z: torch.Tensor = self.three(y.detach() if self.detaches == "between" else y)
        return z.detach() if self.detaches == "all" else z


def _split_without_gradients(model: Detaching, where: str = "between") -> SplitModule:
    """A split whose trace is not of what the model does."""
    model.detaches = where
    wrong = trace(model, (X,), training=model.training)
    model.detaches = ""
    return SplitModule(model, stages_of(wrong, edges(len(wrong.graph.layers), 2)), lambda *_: wrong)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_different_outputs_name_the_first_layer() -> None:
    model = Scaling().eval()
    traced = trace(model, (X,), training=False)
    divided = SplitModule(model, stages_of(traced, edges(len(traced.graph.layers), 2)), lambda *_: traced)
    model.factor = 2
    with pytest.raises(MismatchError, match=r"output 0 differs .* by up to .* the first layer that differs is three"):
        verify(divided, model, (X,), {})


def test_different_gradients_name_the_first_layer() -> None:
    model = Detaching().train()
    with pytest.raises(MismatchError, match=r"gradient of one\.\w+ differs .* \(4 of 6 do\).* is one$"):
        verify(_split_without_gradients(model), model, (X,), {})


def test_no_gradients_at_all_differ_too() -> None:
    model = Detaching().train()
    with pytest.raises(MismatchError, match=r"gradient of one\.\w+ differs .* \(6 of 6 do\)"):
        verify(_split_without_gradients(model, "all"), model, (X,), {})


def test_in_eval_mode_gradients_do_not_matter() -> None:
    model = Detaching().eval()
    verify(_split_without_gradients(model), model, (X,), {})


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


def test_how_much_was_compared() -> None:
    model = _net().train()
    compared = verify(split(model, (X,), {}), model, (X,), {})
    assert (compared.num_outputs, compared.num_gradients, compared.num_buffers, compared.is_exact) == (1, 6, 3, True)


def test_the_gradient_of_an_input_counts() -> None:
    model, x = _net().train(), X.clone().requires_grad_()
    assert verify(split(model, (x,), {}), model, (x,), {}).num_gradients == 7
    assert x.grad is None


def test_hooks_that_step_an_optimizer_do_not_run() -> None:
    model = _net().train()
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda weight: weight.data.zero_()
        )
    before = [weight.detach().clone() for weight in model.parameters()]
    verify(split(model, (X,), {}), model, (X,), {})
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


class Structured(nn.Module):
    """Says in its result how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.number = nn.Linear(4, 4), nn.Linear(4, 4), 1

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        return self.two(self.one(x)), self.number


def test_a_result_that_is_no_tensor_counts() -> None:
    model = Structured().eval()
    traced = trace(model, (X,), training=False)
    divided = SplitModule(model, stages_of(traced, edges(len(traced.graph.layers), 2)), lambda *_: traced)
    verify(divided, model, (X,), {})
    model.number = 2
    with pytest.raises(MismatchError, match="another structure"):
        verify(divided, model, (X,), {})


class Keeping(nn.Module):
    """Keeps what it has seen, as rotary embeddings do, without that mattering."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.longest, self.seen = 0, [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.longest = max(self.longest, len(x))
        self.seen.append(len(x))
        return self.two(self.one(x))  # type: ignore[no-any-return]


def test_state_that_does_not_matter_is_put_back() -> None:
    model = Keeping().eval()
    divided = split(model, (X,), {})
    before = model.longest, list(model.seen)
    verify(divided, model, (X,), {})
    assert (model.longest, model.seen) == before
