"""Real models in their real size: the figures of a Graph against what torch counts in a real run, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autopart.schema.graph import Graph
from autopart.tracing import trace


def _gpt2() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(use_cache=False)), {"input_ids": torch.zeros(1, 24, dtype=torch.long)}


def _resnet50() -> tuple[nn.Module, dict[str, Any]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck")
    return ResNetForImageClassification(config), {"pixel_values": torch.zeros(2, 3, 64, 64)}


@pytest.fixture(scope="module", params=[_gpt2, _resnet50])
def run(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Any], Graph]:
    model, inputs = request.param()
    return model, inputs, trace(model, (), inputs, training=True).graph


def test_saved_bytes_are_those_of_a_real_run(run: tuple[nn.Module, dict[str, Any], Graph]) -> None:
    model, inputs, graph = run
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model.train()(**inputs)
    assert result is not None
    expected = sum(each.untyped_storage().nbytes() for pointer, each in kept.items() if pointer not in weights)
    assert sum(layer.saved_bytes for layer in graph.layers) == expected > 0


def test_flops_are_those_of_an_eager_run(run: tuple[nn.Module, dict[str, Any], Graph]) -> None:
    """With attention made of matrix products, which torch's counter sees; it is blind to the processor's kernel."""
    model, inputs, graph = run
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**inputs)
    assert graph.flops == counter.get_total_flops() > 0
