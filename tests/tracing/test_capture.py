from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from torch import nn

from autopart.errors import TracingError
from autopart.tracing import trace, training_mode
from autopart.tracing.capture import capture
from tests.zoo import CPU


def test_a_model_that_computes_nothing_is_refused() -> None:
    with pytest.raises(TracingError, match="Identity computes nothing"):
        trace(nn.Identity(), (torch.randn(2),), training=False)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4))


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model, x = _net().train(), torch.randn(3, 4)
    model[1].eval()
    model[0].requires_grad_(False)
    model(x).sum().backward()
    flags = [module.training for module in model.modules()]
    before = [
        (id(tensor), tensor.detach().clone(), tensor.requires_grad, tensor.grad)
        for tensor in model.state_dict(keep_vars=True).values()
    ]
    registers = [list(vars(module)) for module in model.modules()]
    random = torch.get_rng_state()
    trace(model, (x,), training=training)
    assert [module.training for module in model.modules()] == flags
    for tensor, old in zip(model.state_dict(keep_vars=True).values(), before, strict=True):
        assert (id(tensor), tensor.requires_grad) == (old[0], old[2])
        assert torch.equal(tensor, old[1])
        assert tensor.grad is old[3]
    assert [list(vars(module)) for module in model.modules()] == registers
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.calls = 0
        self.last: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = self.seen = self.one(x)
        return self.last * 2


def test_what_forward_remembers_is_not_of_the_trace() -> None:
    model = Remembering()
    trace(model, (torch.randn(3, 4),), training=True)
    assert (model.calls, model.last, hasattr(model, "seen")) == (0, None, False)


@pytest.mark.parametrize(("root", "training", "expected"), [
    (True, True, [True, True, False, True, True]),
    (False, True, [True] * 5),
    (True, False, [False] * 5),
    (False, False, [False, False, True, False, False]),
])  # fmt: skip
def test_modes_set_by_hand_stay_if_the_root_is_in_the_mode(root: bool, training: bool, expected: list[bool]) -> None:
    model = _net().train(root)
    model[1].train(not root)
    with training_mode(model, training):
        assert [module.training for module in model.modules()] == expected
    assert model[1].training is not root


def _targets(model: nn.Module, *args: Any, training: bool = True) -> list[str]:
    graph = capture(model, args, {}, training=training).graph
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


class Wasteful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.count: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.exp(x)
        torch.rand(2)
        self.count += 1
        return self.one(x.to(torch.float32))  # type: ignore[no-any-return]


def test_only_nodes_that_matter_are_kept() -> None:
    """exp is dead; rand moves the random numbers on, and the counter is kept, but not copied onto itself."""
    targets = _targets(Wasteful(), torch.randn(2, 4))
    assert not any(name in target for target in targets for name in ("exp", "_assert", "copy_"))
    assert [name for name in ("aten.rand.default", "aten.add_.Tensor", "aten.linear.default") if name in targets] == [
        "aten.rand.default", "aten.add_.Tensor", "aten.linear.default"
    ]  # fmt: skip


def test_weights_on_several_devices_are_traced_as_if_on_one() -> None:
    model, x = _net().train(), torch.randn(3, 4)
    whole = trace(model, (x,), training=True)
    model[3].to("meta")
    before = list(model.state_dict(keep_vars=True).values())
    spread = trace(model, (x,), training=True)
    assert spread.graph == whole.graph
    assert all(one is other for one, other in zip(before, model.state_dict(keep_vars=True).values(), strict=True))
    held = {id(tensor) for tensor in (*spread.captured.parameters(), *spread.captured.buffers())}
    assert held == {id(tensor) for tensor in before}
    assert spread.device == CPU


def test_a_wide_model_is_traced_without_its_weights() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=8192, intermediate_size=28672, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model, tokens = LlamaForCausalLM(config), torch.zeros(4, 2048, dtype=torch.long)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    traced = trace(model, (), {"input_ids": tokens}, training=True)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert traced.graph.parameter_bytes > 15e9
    assert sum(layer.saved_bytes for layer in traced.graph.layers) > 10e9
    assert grown_bytes < 1e9
    assert all(parameter.is_meta for parameter in model.parameters())
