from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autopart.errors import RunError, TracingError
from autopart.opaque import OpaqueCall
from autopart.tracing import trace
from tests.zoo import assert_same, outcome, split

WIDTH = 8


def _net(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *middle, nn.Linear(WIDTH, WIDTH))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.one(x)  # type: ignore[no-any-return]
        return self.two(x)  # type: ignore[no-any-return]


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(np.abs(x.detach().numpy()).mean())


class Python(nn.Module):
    """Layer drop, with the random numbers of Python and numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if random.random() < 0.5 and np.random.rand() < 0.5:
            return x
        return self.one(x)  # type: ignore[no-any-return]


class Counting(nn.Module):
    """Replaces a buffer, writes into another past its version counter, and normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.calls: torch.Tensor
        self.mean: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        self.mean.data.copy_(0.5 * x.detach().mean(0))
        return self.norm(x) * float(self.calls)  # type: ignore[no-any-return]


class Drop(nn.Module):
    """Random numbers of torch, a tuple with None, and keyword arguments that are no tensors."""

    def forward(self, x: torch.Tensor, *, rate: float = 0.5, pair: bool = False) -> tuple[torch.Tensor, None]:
        return (x if torch.rand([]) < rate else nn.functional.dropout(x, rate)) + pair, None


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.drop, self.two = nn.Linear(WIDTH, WIDTH), Drop(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x, _ = self.drop(self.one(x), rate=0.3, pair=True)
        return {"y": self.two(x), "x": self.drop(x)[0]}


CASES = {
    "branch": (lambda: _net(Branching()), "1"),
    "two branches": (lambda: _net(Branching(), Branching(), Branching()), "1"),
    "numpy": (lambda: _net(Numpy()), "1"),
    "python": (lambda: _net(Python()), "1"),
    "buffers": (lambda: _net(Counting()), "1"),
    "drop": (Dropping, "drop"),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_traced_runs_as_it_is_written(name: str, training: bool) -> None:
    """On inputs that go the other way, too."""
    build, opaque = CASES[name]
    model = build().train(training)  # type: ignore[no-untyped-call]
    traced = trace(model, (torch.randn(4, WIDTH),), training=training)
    assert traced.graph.tracer == "torch.export, opaque parts"
    assert traced.graph.notes[0].message.startswith(f"{opaque} runs as it is written")
    assert "test_ladder.py:" in traced.graph.notes[0].where
    parts = split(model, (torch.randn(4, WIDTH),), {})
    for seed in range(4):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))
        random.seed(seed)
        np.random.seed(seed)
        whole = outcome(model, model, (x,), {})
        random.seed(seed)
        np.random.seed(seed)
        assert_same(whole, outcome(parts, model, (x,), {}))


def test_the_run_that_is_recorded_leaves_no_trace() -> None:
    model, x = _net(Counting(), Python(), Drop())[:-2].train(), torch.randn(4, WIDTH)
    random.seed(1)
    np.random.seed(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held = [id(tensor) for tensor in model.buffers()]
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    trace(model, (x,), training=True)
    assert states[:2] == (random.getstate(), str(np.random.get_state()))
    assert torch.equal(states[2], torch.get_rng_state())
    assert held == [id(tensor) for tensor in model.buffers()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("_call_impl" in vars(module) for module in model.modules())


def _threshold(x: torch.Tensor, least: float) -> torch.Tensor:
    return x * 2 if x.max() > least else x


class Calling(nn.Module):
    """Branches in a function and in a method, around most of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale, self.shift = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.scaled(_threshold(self.one(x), 0.1)))  # type: ignore[no-any-return]

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale if x.sum() > 0 else x


def test_functions_and_methods_are_opaque_where_a_module_would_be_most_of_the_model() -> None:
    torch.manual_seed(0)
    model, x = Calling().train(), torch.randn(4, WIDTH)
    traced = trace(model, (x,), training=True)
    assert [note.message.partition(" ")[0] for note in traced.graph.notes] == ["_threshold()", "model.scaled()"]
    calls = [node for node in traced.captured.graph.nodes if isinstance(node.target, OpaqueCall)]
    assert [call.target.weight_names for call in calls] == [(), ("scale",)]
    assert len(traced.graph.layers) > 1
    parts = split(model, (x,), {})
    for sign in (1, -1):
        assert_same(outcome(model, model, (sign * x,), {}), outcome(parts, model, (sign * x,), {}))


class Rooted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.one(x).sum() > 0:
            return x
        return -x


def test_a_model_whose_own_code_branches_is_one_layer() -> None:
    traced = trace(Rooted(), (torch.randn(2, 4),), training=False)
    assert (traced.graph.tracer, [layer.name for layer in traced.graph.layers]) == ("whole model", ["model"])
    note = traced.graph.notes[-1]
    assert note.code == "whole-model"
    assert "data-dependent" in note.message
    assert "(if self.one(x).sum() > 0" in note.where
    assert note.suggestion == "make that line independent of tensor values"


def test_without_weights_code_that_needs_values_is_refused() -> None:
    with torch.device("meta"):
        model = Rooted()
    with pytest.raises(TracingError, match="must be run with real weights") as caught:
        trace(model, (torch.randn(2, 4, device="meta"),), training=False)
    assert "\n" not in str(caught.value)


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"no {len(x)} please")


def test_a_model_that_does_not_run_is_refused_with_its_own_error() -> None:
    with pytest.raises(TracingError, match=r"no 2 please") as caught:
        trace(_net(Failing()), (torch.randn(2, WIDTH),), training=False)
    assert "test_ladder.py:" in str(caught.value)


class Varying(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (x[x > 0] if x.sum() > 0 else x.sum().reshape(1)).mean(0, keepdim=True), int(x.sum() > 1e3)


def test_an_answer_of_another_form_than_traced_is_an_error() -> None:
    model = nn.Sequential(nn.Identity(), Varying()).eval()
    x = torch.ones(4)
    parts = trace(model, (x,), training=False)
    segment = parts.segment(0, len(parts.graph.layers))
    assert torch.equal(segment(x)[0], torch.ones(1))
    with pytest.raises(RunError, match="returned other values that are no tensors"):
        segment(x * 1000)


def test_repeated_opaque_layers_are_the_same_work_and_others_are_not() -> None:
    model = _net(Branching(), Branching(), Python())
    layers = {layer.name: layer for layer in trace(model, (torch.randn(4, WIDTH),), training=True).graph.layers}
    assert layers["1"].signature == layers["2"].signature
    assert layers["1"].signature != layers["3"].signature


class Dense(nn.Module):
    """Saves its input, what sigmoid gives, and what comes in between."""

    def __init__(self, *, looks: bool) -> None:
        super().__init__()
        self.one, self.two, self.looks = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), looks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.looks and bool(x.isnan().any()):
            return x
        return self.two(self.one(x).sigmoid())  # type: ignore[no-any-return]


def test_what_does_not_run_on_fakes_costs_what_the_recorded_run_did() -> None:
    """Beside the same layer without the branch: the same matrix products, and the same bytes kept for backward."""
    found = []
    for looks in (True, False):
        traced = trace(_net(Dense(looks=looks)), (torch.randn(4, WIDTH),), training=True)
        gemm = sum(work.flops for layer in traced.graph.layers for work in layer.work if work.family == "gemm")
        found.append((gemm, sum(layer.saved_bytes for layer in traced.graph.layers)))
    assert found[0] == found[1] == (4 * 2 * 4 * WIDTH**2, 4 * 4 * 4 * WIDTH)


class Masking(nn.Module):
    """Makes a mask only while it is traced, as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), Masked()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(x) if torch.compiler.is_exporting() else None
        return self.two(self.one(x), mask)  # type: ignore[no-any-return]


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = x * 2 if mask is None else x * 2 * mask
        return y if y.sum() > 0 else -y


def test_an_opaque_part_is_recorded_as_it_is_called_in_the_trace() -> None:
    model, x = Masking().train(), torch.randn(4, WIDTH)
    traced = trace(model, (x,), training=True)
    assert [note.message.partition(" ")[0] for note in traced.graph.notes] == ["two"]
    assert_same(outcome(model, model, (x,), {}), outcome(split(model, (x,), {}), model, (x,), {}))


class Selecting(nn.Module):
    """Keeps as many rows as the values say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x.sum(1).abs() > 1e-9]


def test_shapes_that_depend_on_values_are_checked_at_every_call() -> None:
    model, x = _net(Selecting()).eval(), torch.randn(4, WIDTH)
    traced = trace(model, (x,), training=False)
    assert [note.message.partition(" ")[0] for note in traced.graph.notes] == ["1"]
    segment = traced.segment(0, len(traced.graph.layers))
    assert torch.equal(segment(x)[0], model(x))
    with torch.no_grad():
        for tensor in model[0].parameters():
            tensor.zero_()
    with pytest.raises(RunError, match=r"output 0 of 1 is \(0, 8\)"):
        segment(x)


class Throwing(nn.Module):
    """Draws from a torch.Generator, and by a name of numpy's that was imported before."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(x.shape, generator=self.dice) + float(_normal())


_normal = np.random.normal


def test_what_no_line_shows_is_said_with_the_module() -> None:
    notes = trace(_net(Throwing()).train(), (torch.randn(4, WIDTH),), training=True).graph.notes
    assert [note.message.partition(" ")[0] for note in notes] == ["1"]
    assert "forward of Throwing" in notes[0].where


class Clamping(nn.Module):
    """Bounds its weight where autograd does not look, in a method that another module calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        self.inner.weight.data.clamp_(-0.1, 0.1)
        return self.inner(x)  # type: ignore[no-any-return]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.clamping, self.last = nn.Linear(WIDTH, WIDTH), Clamping(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.clamping.predict(self.first(x)))  # type: ignore[no-any-return]


def test_only_the_method_that_writes_a_weight_behind_autograd_is_opaque() -> None:
    model = nn.Sequential(Around(), Around(), Around()).train()
    traced = trace(model, (torch.randn(4, WIDTH),), training=True)
    assert [note.message.partition(" ")[0] for note in traced.graph.notes] == [
        "0.clamping.predict()", "1.clamping.predict()"
    ]
    assert "1 more of its kind" in traced.graph.notes[1].message
    around, x = Around().train(), torch.randn(4, WIDTH)
    expected = outcome(around, around, (x,), {})
    assert_same(outcome(split(around, (x,), {}), around, (x,), {}), expected)
