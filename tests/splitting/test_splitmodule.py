from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from autopart.errors import MismatchError, UsageError
from autopart.program import Program
from autopart.splitting import SplitModule, StagePlacement, placements_for
from autopart.tracing import trace
from tests.zoo import CPU, assert_same, case, outcome, program, split, tracer


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


class Counting:
    """Traces, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Any, training: bool) -> Program:
        self.calls += 1
        return tracer(model, args, kwargs, training)


def _counted(model: nn.Module) -> tuple[SplitModule, Counting]:
    counting = Counting()
    stages = [StagePlacement(layers=("0",), device=CPU), StagePlacement(layers=("4",), device=CPU)]
    return SplitModule(model, stages, counting), counting


def test_state_dict_and_parameters_are_the_models_own() -> None:
    model = _net()
    divided = split(model, (torch.randn(5, 4),), {})
    divided(torch.randn(5, 4))
    assert list(divided.state_dict()) == list(model.state_dict())
    ours, theirs = list(divided.named_parameters()), list(model.named_parameters())
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert all(one is other for (_, one), (_, other) in zip(ours, theirs, strict=True))
    assert all(one is other for one, other in zip(divided.buffers(), model.buffers(), strict=True))


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict_takes_effect(assign: bool) -> None:
    model, x = _net().eval(), torch.randn(5, 4)
    divided = split(model, (x,), {})
    divided(x)
    other = _net().eval()
    divided.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    assert torch.equal(divided(x), other(x))
    assert all(torch.equal(one, two) for one, two in zip(divided.parameters(), other.parameters(), strict=True))


def test_replaced_weights_do_not_pile_up_traces() -> None:
    model, x = _net().eval(), torch.randn(5, 4)
    divided, counting = _counted(model)
    for _ in range(3):
        divided.load_state_dict(_net().state_dict(), assign=True)
        divided(x)
    assert counting.calls == 3
    assert len(divided._traced) == 1


def test_a_form_of_call_is_traced_once() -> None:
    model = _net().eval()
    divided, counting = _counted(model)
    for batch in (5, 7, 5, 7):
        x = torch.randn(batch, 4)
        assert torch.equal(divided(x), model(x))
    assert counting.calls == 2


def test_train_and_eval_after_the_split() -> None:
    model, x = _net(), torch.randn(5, 4)
    divided, counting = _counted(model)
    for training in (True, False, True):
        assert divided.train(training) is divided
        assert divided.training == model.training == model[1].training == training
        assert_same(outcome(model, model, (x,), {}), outcome(divided, model, (x,), {}))
    assert counting.calls == 2
    divided.eval()
    assert not model.training


def test_a_submodule_put_in_eval_mode_by_hand_is_heeded() -> None:
    model, x = _net().train(), torch.randn(5, 4)
    divided, _ = _counted(model)
    divided(x)
    model[1].eval()
    assert_same(outcome(model, model, (x,), {}), outcome(divided, model, (x,), {}))
    assert [module.training for module in model] == [True, False, True, True, True]


def test_a_cast_model_is_traced_anew() -> None:
    model, x = _net().eval(), torch.randn(5, 4)
    divided = split(model, (x,), {})
    divided(x)
    divided.double()
    assert divided(x.double()).dtype == torch.float64


def test_attributes_of_the_model_are_reached() -> None:
    each = case("gpt2")
    divided = SplitModule(each.model, [], tracer)
    assert divided.config is each.model.config
    assert divided.transformer is each.model.transformer
    with pytest.raises(AttributeError, match="no_such"):
        _ = divided.no_such


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda divided: pickle.loads(pickle.dumps(divided))])
def test_a_copy_is_independent(copied: Callable[[SplitModule], SplitModule]) -> None:
    model, x = _net().eval(), torch.randn(5, 4)
    divided = split(model, (x,), {})
    expected = divided(x)
    other = copied(divided)
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    assert torch.equal(other(x), expected)
    assert not torch.equal(divided(x), expected)


class Named(nn.Module):
    """Submodules with names that the segments or the split module might want for themselves."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__()
        self.names = (one, other)
        setattr(self, one, nn.Linear(4, 4))
        setattr(self, other, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = getattr(self, name)(x)
        return x


@pytest.mark.parametrize(
    "names", [("first", "last"), ("device", "stages"), ("body", "output_names"), ("stitched", "input_names")]
)
def test_submodules_may_have_any_name(names: tuple[str, str]) -> None:
    model, x = Named(*names), torch.randn(2, 4)
    divided = split(model, (x,), {})
    assert_same(outcome(model, model, (x,), {}), outcome(divided, model, (x,), {}))
    assert [name for name, _ in divided.named_children()] == list(names)


@dataclass
class Pair:
    left: torch.Tensor
    number: int = 0


class Returns(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.one, self.two, self.form = nn.Linear(4, 4), nn.Linear(4, 4), form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.form(self, *args, **kwargs)


def _plain(own: Returns, x: torch.Tensor) -> torch.Tensor:
    return own.two(own.one(x))  # type: ignore[no-any-return]


X = torch.arange(8.0).reshape(2, 4)
FORMS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "dict": (lambda own, x: {"b": _plain(own, x), "a": {"c": x}}, (X,), {}),
    "dataclass": (lambda own, pair: Pair(_plain(own, pair.left), pair.number + 1), (Pair(X, 3),), {}),
    "tuple-none-int": (lambda own, x: (_plain(own, x), None, 3, [x.sum()], "s"), (X,), {}),
    "twice": (lambda own, x: (lambda y: (y, y, {"y": y}))(_plain(own, x)), (X,), {}),
    "input": (lambda own, x, y: (_plain(own, x), y), (X, X + 1), {}),
    "parameter": (lambda own, x: (_plain(own, x), own.two.weight), (X,), {}),
    "constant": (lambda own, x: (_plain(own, x), torch.arange(4) + 1), (X,), {}),
    "inputs": (lambda own, n, none, pair: _plain(own, pair[0]) * n + pair[1], (3, None, [X, 2.5]), {}),
    "keywords": (lambda own, x, *, y, z: _plain(own, x + y) * z, (X,), {"z": X + 1, "y": X + 2}),
}


@pytest.mark.parametrize("form", FORMS)
def test_calls_and_results_of_any_structure(form: str) -> None:
    function, args, kwargs = FORMS[form]
    model = Returns(function)
    divided = split(model, args, kwargs)
    assert_same(outcome(model, model, args, kwargs), outcome(divided, model, args, kwargs))
    expected, found = model(*args, **kwargs), divided(*args, **dict(reversed(kwargs.items())))
    assert str(found) == str(expected)
    assert type(found) is type(expected)


def test_another_number_in_the_call_is_another_trace() -> None:
    model = Returns(lambda own, x, n: _plain(own, x) * n)
    divided = split(model, (X, 2), {})
    assert all(torch.equal(divided(X, n), model(X, n)) for n in (2, 3, True, 2.5))


def test_gradients_reach_an_input() -> None:
    model = _net().eval()
    one, other = torch.randn(5, 4, requires_grad=True), torch.zeros(5, 4, requires_grad=True)
    with torch.no_grad():
        other.copy_(one)
    model(one).sum().backward()
    split(model, (torch.randn(5, 4),), {})(other).sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    assert torch.equal(one.grad, other.grad)


def test_traced_without_grad_it_still_trains() -> None:
    model, x = _net().train(), torch.randn(5, 4)
    divided = split(model, (x,), {})
    with torch.no_grad():
        divided(x)
    assert_same(outcome(model, model, (x,), {}), outcome(divided, model, (x,), {}))


def test_ambient_autocast_applies_as_to_the_model() -> None:
    model, x = _net().eval(), torch.randn(5, 4)
    divided = split(model, (x,), {})
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(divided(x), model(x))
        assert torch.equal(divided(x), model(x))


def test_a_hook_on_the_model_is_part_of_it() -> None:
    model, x = _net().eval(), torch.randn(5, 4)
    model.register_forward_hook(lambda _, __, result: result * 2)
    assert torch.equal(split(model, (x,), {})(x), model(x))


def test_a_longer_sequence_keeps_the_stages_beginnings() -> None:
    short, tokens = program("gpt2", False), torch.randint(101, (3, 32))
    each = case("gpt2")
    each.model.eval()
    names = [layer.name for layer in short.graph.layers]
    start = next(index for index, name in enumerate(names) if name.startswith("transformer.h.1"))
    stages = [StagePlacement(layers=tuple(part), device=CPU) for part in (names[:start], names[start:])]
    divided = SplitModule(each.model, stages, tracer)
    stitched = divided.stitched((), {"input_ids": tokens})
    assert stitched.program.graph.layers[stitched.segments[1].first].name.startswith("transformer.h.1")
    assert torch.equal(divided(input_ids=tokens).logits, each.model(input_ids=tokens).logits)


def test_stages_begin_at_inner_or_outer_layers_where_names_differ() -> None:
    model, x = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)), torch.randn(2, 4)
    traced = trace(model, (x,), training=False)
    assert [layer.name for layer in traced.graph.layers] == ["0.0", "0.1", "1"]

    def starts(*names: str) -> list[int]:
        stages = [StagePlacement(layers=(name,), device=CPU) for name in names]
        return [placement.first for placement in placements_for(traced, stages)]

    assert starts("0", "1") == [0, 2]
    assert starts("0", "1.weight_norm") == [0, 2]
    assert starts("0", "0") == [0, 1]
    with pytest.raises(MismatchError, match="begins at 2"):
        starts("0", "2")


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = _net()
    divided, _ = _counted(model)
    with pytest.raises(UsageError, match="has no values"):
        divided(torch.randn(5, 4, device="meta"))
