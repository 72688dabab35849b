from __future__ import annotations

import pytest
import torch
from torch import nn

from autopart.errors import UsageError
from autopart.tracing import trace
from tests.zoo import case, program


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(
        self, x: torch.Tensor, number: int, *, unused: torch.Tensor, y: torch.Tensor
    ) -> dict[str, torch.Tensor | int | None]:
        return {"z": self.two(self.one(x) + y), "n": number, "none": None, "w": self.two.bias}


ARGS = (torch.ones(2, 4), 3)
KWARGS = {"y": torch.full((2, 4), 2.0), "unused": torch.zeros(1)}


def test_inputs_are_those_that_layers_read() -> None:
    traced = trace(Mixed(), ARGS, KWARGS, training=False)
    swapped = dict(reversed(KWARGS.items()))
    for kwargs in (KWARGS, swapped):
        found = traced.flatten_inputs(ARGS, kwargs)
        assert [value.name for value in traced.graph.crossing(0)] == ["x", "y"]
        assert found[0] is ARGS[0]
        assert found[1] is KWARGS["y"]


def test_a_call_of_another_structure_is_refused() -> None:
    traced = trace(Mixed(), ARGS, KWARGS, training=False)
    with pytest.raises(UsageError, match=r"keyword arguments \['unused', 'y'\], not \['y'\]"):
        traced.flatten_inputs(ARGS, {"y": KWARGS["y"]})
    with pytest.raises(UsageError, match="another structure"):
        traced.flatten_inputs((*ARGS, 1), KWARGS)


def test_outputs_have_the_models_structure() -> None:
    model = Mixed()
    traced = trace(model, ARGS, KWARGS, training=False)
    z = torch.zeros(2, 4)
    found = traced.unflatten_outputs((z,))
    assert list(found) == ["z", "n", "none", "w"]
    assert found["z"] is z
    assert (found["n"], found["none"]) == (3, None)
    assert found["w"] is model.two.bias


def test_relaying_segments_compose() -> None:
    each, traced = case("unet"), program("unet", False)
    each.model.eval()
    values = traced.flatten_inputs(each.args, each.kwargs)
    with torch.no_grad():
        for index in range(len(traced.graph.layers)):
            values = traced.segment(index, index + 1)(*values)
            assert [tuple(value.shape) for value in values] == [v.shape for v in traced.graph.crossing(index + 1)]
        assert torch.equal(traced.unflatten_outputs(values)["scores"], each.model(*each.args)["scores"])


def test_weights_are_the_modules_own_as_it_holds_them_now() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    traced = trace(model, (torch.ones(2, 4),), training=False)
    own = dict((*model.named_parameters(), *model.named_buffers()))
    assert {weight.name for weight in traced.graph.weights} == set(own)
    assert all(traced.weight(name) is tensor for name, tensor in own.items())
    model[1].weight = nn.Parameter(torch.zeros(4, 4))
    assert traced.weight("1.weight") is model[1].weight


class Tables(nn.Module):
    """Reads a tensor of its own that is no buffer, one of the code, and a constant made of both, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.scale * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return self.two(self.one(x) * table) * table  # type: ignore[no-any-return]


def test_constants_can_be_computed_apart() -> None:
    model = Tables()
    traced = trace(model, (torch.ones(2, 4),), training=False)
    shared = traced.shared_constants()
    assert shared == ((), ("mul",))
    found = traced.constants(shared[1], weight=traced.weight, device=torch.device("cpu"))
    assert torch.equal(found["mul"], torch.tensor([0.0, 2.0, 6.0, 12.0]))
    assert traced.constants((), weight=traced.weight, device=torch.device("cpu")) == {}
    segment = traced.segment(1, 2, relay=False, given=("mul",))
    x = torch.randn(2, 4)
    assert torch.equal(segment(x, found["mul"])[0], model.two(x) * found["mul"])
