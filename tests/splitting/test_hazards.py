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

from autopart.program import Program
from autopart.restoring import left_as_it_was
from autopart.splitting import SplitModule
from autopart.tracing import trace
from tests.hazards import HAZARDS, Hazardous
from tests.zoo import edges, stages_of

ONE_LAYER = {"PythonLayerdrop", "TorchLayerdrop"}
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
    """In two and in four stages of one trace; what is left behind is put back between the runs."""
    each = HAZARDS[name]
    torch.manual_seed(0)
    model = each.build().train(training)
    with left_as_it_was(model):
        expected = two_calls(model, model, each)
    torch.manual_seed(7)
    program = trace(model, each.inputs(), each.kwargs, training=training)
    num_layers = len(program.graph.layers)
    assert num_layers >= 2 or name in ONE_LAYER
    for num_stages in sorted({min(number, num_layers) for number in (2, 4)}):
        divided = in_stages(model, program, num_stages)
        with left_as_it_was(model):
            found = two_calls(divided, model, each)
        assert_equal(expected, found)
        assert len(divided.stitched(each.inputs(), each.kwargs).segments) == num_stages
    if training and name in KEEP_LITTLE:
        assert_keeps_little(program, divided, model, each.inputs())


def in_stages(model: nn.Module, program: Program, num_stages: int) -> SplitModule:
    cuts = edges(len(program.graph.layers), num_stages)
    return SplitModule(model, stages_of(program, cuts), lambda *_: program)


KEEP_LITTLE = {"Checkpointed", "CheckpointedReentrant", "CheckpointedAutocast", "CheckpointedInAutocast"}


def assert_keeps_little(program: Program, divided: SplitModule, model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """The bytes that autograd keeps are those of the unsplit model, and far fewer than without checkpoints."""
    kept_whole = kept_bytes(model, model, inputs)
    assert kept_bytes(divided, model, inputs) <= 1.1 * kept_whole
    assert sum(layer.saved_bytes for layer in program.graph.layers) <= 1.1 * kept_whole
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


def test_a_transformer_with_gradient_checkpointing() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        vocab_size=53, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    kwargs = {"input_ids": torch.randint(53, (2, 16))}
    plain = trace(model, (), kwargs, training=True)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        program = trace(model, (), kwargs, training=True)
        saved = [sum(layer.saved_bytes for layer in each.graph.layers) for each in (program, plain)]
        assert saved[0] < 0.7 * saved[1]
        expected = one_call(model, model, kwargs)
        for number in (2, 4):
            divided = in_stages(model, program, number)
            assert_equal(expected, one_call(divided, model, kwargs))


def one_call(runner: nn.Module, model: nn.Module, kwargs: dict[str, Any]) -> Left:
    torch.manual_seed(1)
    output = runner(**kwargs).logits
    output.backward(torch.ones_like(output))
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return Left([output.detach()], gradients, {})
