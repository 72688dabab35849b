"""Every hazardous module, split, gives and leaves behind what the unsplit one does, call after call."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.tracing import trace
from tests.hazards import HAZARDS, Hazardous
from tests.zoo import split

ONE_LAYER = {"Generated", "PythonLayerdrop", "TorchLayerdrop"}
"""may end as one layer, which runs as it is written: the code in question is the model's own, around all its layers"""


@dataclass(frozen=True)
class Left:
    """What two calls gave and left behind."""

    results: list[Any]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]


def two_calls(runner: Callable[..., Any], model: nn.Module, each: Hazardous) -> Left:
    """Two calls with backward, from the same random numbers each time, and the random numbers that come after."""
    random.seed(7)
    np.random.seed(7)
    results: list[Any] = []
    for call in range(2):
        torch.manual_seed(100 + call)
        inputs = each.inputs()
        with torch.set_grad_enabled(model.training):
            leaves = pytree.tree_leaves(runner(*inputs, **each.kwargs))
        losses = [(leaf * torch.rand(leaf.shape)).sum() for leaf in leaves if leaf.requires_grad]
        if losses:
            torch.autograd.backward(losses)
        results += [leaf.detach() for leaf in leaves]
        results += [torch.tensor([random.random(), np.random.rand()]), torch.rand(2), *inputs]
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    return Left(results, gradients, {name: buffer.clone() for name, buffer in model.named_buffers()})


def assert_equal(one: Left, other: Left) -> None:
    for index, (left, right) in enumerate(zip(one.results, other.results, strict=True)):
        assert left.dtype == right.dtype and torch.equal(left, right), f"result {index}"
    for ones, others in ((one.gradients, other.gradients), (one.buffers, other.buffers)):
        assert ones.keys() == others.keys()
        for name, tensor in ones.items():
            counterpart = others[name]
            assert (tensor is None) == (counterpart is None), name
            assert tensor is None or (counterpart is not None and torch.equal(tensor, counterpart)), name


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", HAZARDS)
def test_split_hazards_are_right(name: str, training: bool) -> None:
    each = HAZARDS[name]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(each.build().train(training))
    expected = two_calls(models[0], models[0], each)
    torch.manual_seed(7)
    divided = split(models[1], each.inputs(), each.kwargs, 4)
    num_stages = len(divided.stitched(each.inputs(), each.kwargs).segments)
    assert num_stages >= 2 or name in ONE_LAYER
    assert_equal(expected, two_calls(divided, models[1], each))


@pytest.mark.parametrize(
    "name", ["Checkpointed", "CheckpointedReentrant", "CheckpointedAutocast", "CheckpointedInAutocast"]
)
def test_split_checkpoints_keep_as_little_as_the_model_does(name: str) -> None:
    """The bytes that autograd keeps are those of the unsplit model, and far fewer than without checkpoints."""
    torch.manual_seed(0)
    model = HAZARDS[name].build().train()
    inputs = HAZARDS[name].inputs()
    kept_whole = kept_bytes(model, model, inputs)
    divided = split(model, inputs, {}, 4)
    graph = divided.stitched(inputs, {}).program.graph
    assert kept_bytes(divided, model, inputs) <= 1.1 * kept_whole
    assert sum(layer.saved_bytes for layer in graph.layers) <= 1.1 * kept_whole
    one_block = model.blocks[0].norm(model.blocks[0].up(inputs[0])).nbytes  # type: ignore[index,union-attr]
    assert kept_whole < 4 * one_block


def kept_bytes(runner: Callable[..., Any], model: nn.Module, inputs: tuple[Any, ...]) -> int:
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        runner(*inputs)
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_transformer_with_gradient_checkpointing(reentrant: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=4, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=101, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    plain = trace(model, (), {"input_ids": torch.ones(2, 16, dtype=torch.long)}, training=True)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    each = Hazardous(build=lambda: model, inputs=tuple, kwargs={"input_ids": torch.randint(101, (2, 16))})
    torch.manual_seed(0)
    divided = split(model, (), each.kwargs, 4)
    stitched = divided.stitched((), each.kwargs)
    assert len(stitched.segments) == 4
    saved = [sum(layer.saved_bytes for layer in each.graph.layers) for each in (stitched.program, plain)]
    assert saved[0] < 0.7 * saved[1]
    results = []
    for runner in (model, divided):
        torch.manual_seed(1)
        output = runner(**each.kwargs).logits
        output.backward(torch.ones_like(output))
        results.append(Left([output.detach()], {n: w.grad for n, w in model.named_parameters()}, {}))
        model.zero_grad(set_to_none=True)
    assert_equal(*results)
