"""Split models give what the unsplit ones give, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autopart.splitting import SplitModule
from autopart.splitting.stitch import Placement, homes, stitch
from autopart.tracing import trace
from tests.zoo import BUILDERS, CPU, assert_same, case, edges, outcome, program, split, stages_of


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", BUILDERS)
def test_real_models_give_the_same_outputs_gradients_and_buffers(name: str, training: bool) -> None:
    each, traced = case(name), program(name, training)
    each.model.train(training)
    num_layers = len(traced.graph.layers)
    assert num_layers >= 3
    expected = outcome(each.model, each.model, each.args, each.kwargs)
    assert not training or any(gradient is not None for gradient in expected.gradients.values())
    for num_stages in (2, 3, 4):
        stages = stages_of(traced, edges(num_layers, num_stages))
        divided = SplitModule(each.model, stages, lambda *_: traced)
        assert len(divided.stitched(each.args, each.kwargs).segments) == min(num_stages, num_layers)
        assert_same(expected, outcome(divided, each.model, each.args, each.kwargs))


@dataclass(frozen=True)
class Step:
    kind: str
    one: int
    other: int


class Recipe(nn.Module):
    """Runs a list of steps over a growing list of values: skips, a tied weight, in-place writes, a counter."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in steps)
        self.tied = nn.Linear(4, 4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in steps)
        self.register_buffer("total", torch.zeros(4))
        self.total: torch.Tensor

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [self.tied(x)]
        for index, step in enumerate(self.steps):
            one, other = values[step.one % len(values)], values[step.other % len(values)]
            values.append(self._step(step.kind, index, one, other))
        return tuple(values[-2:])

    def _step(self, kind: str, index: int, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if kind == "linear":
            return self.linears[index](one) + other  # type: ignore[no-any-return]
        if kind == "tied":
            return self.tied(one)  # type: ignore[no-any-return]
        if kind == "norm":
            return self.norms[index](one)  # type: ignore[no-any-return]
        if kind == "relu_":
            return torch.relu_(self.linears[index](one))
        if kind == "half":
            return torch.cat([other.chunk(2, 1)[0], one.chunk(2, 1)[1]], 1)
        if kind == "write":
            made = one * 2
            made[:, 1:3].add_(other[:, :2])
            return made
        if kind == "dropout":
            return torch.dropout(one, 0.5, self.training)
        assert kind == "count"
        self.total.add_(1)
        return one + self.total.clone()


KINDS = ("linear", "tied", "norm", "relu_", "half", "write", "dropout", "count")
STEPS = st.builds(Step, st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(steps=st.lists(STEPS, min_size=2, max_size=7), training=st.booleans())
def test_any_cut_of_a_random_model_gives_the_same(steps: list[Step], training: bool) -> None:
    torch.manual_seed(0)
    model, args = Recipe(steps).train(training), (torch.randn(3, 4),)
    traced = trace(model, args, training=training)
    expected = outcome(model, model, args, {})
    num_layers = len(traced.graph.layers)
    for cut in range(1, num_layers):
        divided = SplitModule(model, stages_of(traced, [0, cut, num_layers]), lambda *_: traced)
        assert_same(expected, outcome(divided, model, args, {}))
    alone = SplitModule(model, stages_of(traced, list(range(num_layers + 1))), lambda *_: traced)
    assert_same(expected, outcome(alone, model, args, {}))


class Written(nn.Module):
    """A buffer given a new tensor, as moving averages are, in the first of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("count", torch.zeros(()))
        self.mean: torch.Tensor
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        y: torch.Tensor = self.one(x) + self.count.clone()
        self.mean = 0.9 * self.mean + y.detach().mean(0)
        return self.two(y)  # type: ignore[no-any-return]


def test_a_reassigned_buffer_is_written_where_it_is_made() -> None:
    model, args = Written().train(), (torch.randn(3, 4),)
    traced = trace(model, args, training=True)
    assert [layer.name for layer in traced.graph.layers] == ["one", "two"]
    eager, divided = Written().train(), split(model, args, {})
    eager.load_state_dict(model.state_dict())
    for _ in range(2):
        assert torch.equal(eager(*args), divided(*args))
    assert torch.equal(eager.mean, model.mean)
    assert torch.equal(eager.count, model.count)
    assert float(model.count) == 2


class Calls(nn.Module):
    """What stands between two linear layers is given."""

    def __init__(self, middle: Any) -> None:
        super().__init__()
        self.one, self.two, self.middle = nn.Linear(4, 4), nn.Linear(4, 4), middle
        self.scale = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.middle(self, self.one(x)))  # type: ignore[no-any-return]


def _cast(_: Calls, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ x.T @ x + torch.tensor([1.0, 2.0, 3.0, 4.0])).float()


def _frozen(_: Calls, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        weight = (x * torch.tensor([1.0, 2.0, 3.0, 4.0])).mean()
    return x * weight


@pytest.mark.parametrize(
    "middle",
    [
        _cast,
        _frozen,
        lambda own, x: x * own.scale + torch.tensor([1.0, 2.0, 3.0, 4.0]),
        lambda own, x: own.one(x),
        lambda own, x: x + own.two.weight.sum(0),
    ],
    ids=["autocast", "no_grad", "constants", "called-again", "weight-read-early"],
)
def test_regions_constants_and_shared_weights(middle: Any) -> None:
    model, args = Calls(middle).train(), (torch.randn(4, 4),)
    keys = list(model.state_dict())
    traced = trace(model, args, training=True)
    expected = outcome(model, model, args, {})
    for cut in range(1, len(traced.graph.layers)):
        divided = SplitModule(model, stages_of(traced, [0, cut, len(traced.graph.layers)]), lambda *_: traced)
        assert_same(expected, outcome(divided, model, args, {}))
    assert list(model.state_dict()) == keys


def test_a_tied_weight_lives_with_its_first_user_and_visits_the_others() -> None:
    traced = program("gpt2", True)
    num_layers = len(traced.graph.layers)
    placements = [
        Placement(first=0, last=num_layers - 1, device=CPU),
        Placement(first=num_layers - 1, last=num_layers, device=torch.device("meta", 1)),
    ]
    home = homes(traced, placements)
    assert home["transformer.wte.weight"] == CPU
    assert home["transformer.ln_f.weight"].type in ("cpu", "meta")
    assert stitch(traced, placements, home).lifted == ((), ("transformer.wte.weight",))
