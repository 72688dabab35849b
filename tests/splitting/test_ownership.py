"""The user's module keeps its parameters, names, ties, hooks and modes, and they go on to work."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from autopart.splitting import SplitModule
from autopart.splitting.stitch import Placement, homes, stitch
from autopart.tracing import trace
from tests.zoo import assert_same, case, outcome, program, split

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """First and last layer share their weight; one submodule is called in both stages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
        self.scale: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shared(torch.relu(self.first(x))) * self.scale
        return self.last(self.shared(torch.relu(y)) * self.scale)  # type: ignore[no-any-return]


def test_a_tied_weight_and_a_shared_submodule_across_devices() -> None:
    model = Tied().train()
    expected = outcome(model, model, (X,), {})
    traced = trace(model, (X,), training=True)
    num_layers = len(traced.graph.layers)
    assert num_layers >= 4
    for cut in range(1, num_layers):
        placements = [
            Placement(first=first, last=last, device=torch.device("cpu", index))  # torch takes them for two devices
            for index, (first, last) in enumerate(itertools.pairwise((0, cut, num_layers)))
        ]
        stitched = stitch(traced, placements, homes(traced, placements))
        assert "first.weight" in stitched.lifted[1]  # the last layer's too
        assert_same(expected, outcome(lambda x, run=stitched: run((x,), {}), model, (X,), {}))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_tied_embeddings_of_real_models_across_devices(name: str) -> None:
    each, traced = case(name), program(name, True)
    each.model.train()
    num_layers = len(traced.graph.layers)
    cuts = (0, num_layers // 3, 2 * num_layers // 3, num_layers)
    placements = [
        Placement(first=first, last=last, device=torch.device("cpu", index))
        for index, (first, last) in enumerate(itertools.pairwise(cuts))
    ]
    stitched = stitch(traced, placements, homes(traced, placements))
    assert any(stitched.lifted)
    expected = outcome(each.model, each.model, each.args, each.kwargs)
    assert_same(expected, outcome(lambda **kw: stitched((), kw), each.model, each.args, each.kwargs))


def test_state_dict_there_and_back_is_the_identity() -> None:
    model, other = Tied(), Tied()
    divided = split(model, (X,), {})
    divided(X)
    assert list(divided.state_dict()) == list(Tied().state_dict())
    assert vars(divided.state_dict()) == vars(model.state_dict())  # its metadata: versions of the modules' formats
    assert [name for name, _ in divided.named_buffers()] == ["scale"]
    divided.load_state_dict(other.state_dict())
    assert torch.equal(divided(X), other(X))
    back = Tied()
    back.load_state_dict(divided.state_dict())
    assert torch.equal(back(X), other(X))
    assert model.last.weight is model.first.weight


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_optimizer_made_before_or_after_the_split(after: bool) -> None:
    model = Tied().train()
    twin = copy.deepcopy(model)
    parameters: Callable[[], Any] = model.parameters
    optimizer = None if after else torch.optim.AdamW(parameters(), lr=0.1)
    divided = split(model, (X,), {})
    optimizer = optimizer or torch.optim.AdamW(divided.parameters(), lr=0.1)
    other = torch.optim.AdamW(twin.parameters(), lr=0.1)
    for _ in range(3):
        for each, steps in ((divided, optimizer), (twin, other)):
            steps.zero_grad()
            each(X).square().sum().backward()
            steps.step()
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(model.first.weight, Tied().first.weight)


def test_frozen_before_and_after_the_split() -> None:
    model = Tied().train()
    model.shared.requires_grad_(False)
    divided = split(model, (X,), {})
    for frozen in (model.shared, model.first):
        assert_same(outcome(model, model, (X,), {}), outcome(divided, model, (X,), {}))
        frozen.requires_grad_(not next(frozen.parameters()).requires_grad)
    found = outcome(divided, model, (X,), {})
    assert found.gradients["shared.weight"] is not None and found.gradients["first.weight"] is None
    assert_same(outcome(model, model, (X,), {}), found)


def _two(change: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    return nn.Sequential(change(nn.Linear(4, 8)), nn.ReLU(), change(nn.Linear(8, 4)))


class Low(nn.Module):
    """A LoRA wrapper: the wrapped layer is frozen, two thin ones are not."""

    def __init__(self, wrapped: nn.Linear) -> None:
        super().__init__()
        self.base_layer = wrapped.requires_grad_(False)
        self.down = nn.Linear(wrapped.in_features, 2, bias=False)
        self.up = nn.Linear(2, wrapped.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))  # type: ignore[no-any-return]


CHANGES: dict[str, Callable[[Any], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm, "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal, "old_weight_norm": weight_norm, "old_spectral_norm": spectral_norm,
    "lora": Low,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("change", CHANGES)
def test_reparametrized_weights(change: str, training: bool) -> None:
    model = _two(CHANGES[change]).train(training)
    keys = list(model.state_dict())
    divided = split(model, (X,), {})
    expected = outcome(model, model, (X,), {})
    assert_same(expected, outcome(divided, model, (X,), {}))
    assert list(divided.state_dict()) == keys
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    assert_same(outcome(model, model, (X,), {}), outcome(divided, model, (X,), {}))


@pytest.mark.parametrize("kind", ["forward", "pre"])
def test_hooks_registered_and_removed_after_the_split(kind: str) -> None:
    model = Tied().eval()
    divided = split(model, (X,), {})
    plain = divided(X)
    if kind == "forward":
        handle = model.shared.register_forward_hook(lambda _, __, result: result * 3)
    else:
        handle = model.shared.register_forward_pre_hook(lambda _, given: (given[0] * 3,))
    assert torch.equal(divided(X), model(X))
    assert not torch.equal(divided(X), plain)
    handle.remove()
    assert torch.equal(divided(X), plain)


def test_hooks_on_the_split_model_itself() -> None:
    divided = split(Tied().eval(), (X,), {})
    plain = divided(X)
    divided.register_forward_hook(lambda _, __, result: result * 3)
    assert torch.equal(divided(X), plain * 3)


@pytest.mark.parametrize("when", ["before", "after"])
def test_backward_hooks_on_submodules_count_or_are_refused(when: str) -> None:
    model = Tied().train()
    divided = split(model, (X,), {}) if when == "after" else None
    if divided is not None:
        divided(X)

    def doubled(_: nn.Module, given: Any, __: Any) -> tuple[torch.Tensor | None, ...]:
        return tuple(None if each is None else each * 2 for each in given)

    model.shared.register_full_backward_hook(doubled)
    divided = divided or split(model, (X,), {})
    assert_same(outcome(model, model, (X,), {}), outcome(divided, model, (X,), {}))


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_cast_after_the_split(cast: str) -> None:
    model = Tied().eval()
    divided = split(model, (X,), {})
    divided(X)
    getattr(divided, cast)()
    x = X.to(model.first.weight.dtype)
    found = divided(x)
    assert found.dtype == x.dtype
    assert torch.equal(found, model(x))
    assert model.last.weight is model.first.weight


def test_a_deep_copy_keeps_its_ties_and_is_split_itself() -> None:
    divided = split(Tied().eval(), (X,), {})
    expected = divided(X)
    other = copy.deepcopy(divided)
    assert isinstance(other, SplitModule)
    assert other.last.weight is other.first.weight
    assert torch.equal(other(X), expected)
    assert len(other.stitched((X,), {}).segments) == 2
