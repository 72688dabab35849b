"""Small real models with random weights, and a run of one that leaves it as it was."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.program import Program
from autopart.splitting import SplitModule, StagePlacement
from autopart.tracing import trace
from examples import mlp

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class UNet(nn.Module):
    """Skips, batch normalisation and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = _block(3, 8), _block(8, 16)
        self.middle = _block(16, 16)
        self.up2, self.up1 = _block(32, 8), _block(16, 4)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        one = self.down1(image)
        two = self.down2(self.pool(one))
        low = self.middle(self.pool(two))
        low = self.up2(torch.cat([self.grow(low), two], 1))
        return {"scores": self.up1(torch.cat([self.grow(low), one], 1))}


def _block(num_in: int, num_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(num_in, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU(inplace=True))


def _gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=101, n_positions=32, use_cache=False)
    return Case(GPT2LMHeadModel(config), (), {"input_ids": _tokens(2, 16)})


def _llama() -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=101, use_cache=False,
    )  # fmt: skip
    return Case(LlamaForCausalLM(config), (), {"input_ids": _tokens(2, 16)})


def _bert() -> Case:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=64, vocab_size=101
    )  # fmt: skip
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    return Case(BertForSequenceClassification(config), (), {"input_ids": _tokens(2, 16), "attention_mask": mask})


def _t5() -> Case:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        num_layers=1, d_model=32, d_ff=64, num_heads=2, d_kv=16, vocab_size=101, use_cache=False
    )  # fmt: skip
    tokens = {"input_ids": _tokens(2, 8), "decoder_input_ids": _tokens(2, 6)}
    return Case(T5ForConditionalGeneration(config), (), tokens)


def _resnet() -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8)
    return Case(ResNetForImageClassification(config), (torch.randn(2, 3, 32, 32),), {})


def _unet() -> Case:
    return Case(UNet(), (torch.randn(2, 3, 16, 16),), {})


def _mlp() -> Case:
    torch.manual_seed(0)
    return Case(mlp.build_model(), (torch.randn(4, mlp.WIDTH),), {})


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randint(101, shape)


BUILDERS: dict[str, Callable[[], Case]] = {
    "gpt2": _gpt2, "llama": _llama, "bert": _bert, "t5": _t5, "resnet": _resnet, "unet": _unet, "mlp": _mlp,
}  # fmt: skip


@functools.cache
def case(name: str) -> Case:
    """Built once; tests leave its weights, buffers and gradients as they were."""
    torch.manual_seed(0)
    return BUILDERS[name]()


@functools.cache
def program(name: str, training: bool) -> Program:
    each = case(name)
    return trace(each.model, each.args, each.kwargs, training=training)


def tracer(model: nn.Module, args: tuple[Any, ...], kwargs: Any, training: bool) -> Program:
    return trace(model, args, kwargs, training=training)


def edges(num_layers: int, num_stages: int) -> list[int]:
    num_stages = min(num_stages, num_layers)
    return [num_layers * index // num_stages for index in range(num_stages + 1)]


def stages_of(traced: Program, cuts: Sequence[int], device: torch.device = CPU) -> list[StagePlacement]:
    """Stages between ``cuts``, which begin with 0 and end with the number of layers."""
    names = [layer.name for layer in traced.graph.layers]
    return [
        StagePlacement(layers=tuple(names[first:last]), device=device)
        for first, last in itertools.pairwise(cuts)
    ]


def split(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], num_stages: int = 2) -> SplitModule:
    """Split evenly over stages that all run on the processor."""
    traced = trace(model, args, kwargs, training=model.training)
    return SplitModule(model, stages_of(traced, edges(len(traced.graph.layers), num_stages)), tracer)


@dataclass(frozen=True)
class Outcome:
    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]


def outcome(runner: Callable[..., Any], model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """What a run of ``runner`` gives and leaves in ``model``, whose buffers and gradients are put back."""
    before = copy.deepcopy(dict(model.named_buffers()))
    torch.manual_seed(7)
    result = runner(*args, **kwargs)
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    losses = [(out * torch.rand_like(out)).sum() for out in outputs if out.requires_grad]
    if model.training and losses:
        torch.autograd.backward(losses)
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return Outcome([out.detach() for out in outputs], gradients, buffers)


def assert_same(one: Outcome, other: Outcome) -> None:
    """Bit by bit."""
    assert len(one.outputs) == len(other.outputs)
    for index, (left, right) in enumerate(zip(one.outputs, other.outputs, strict=True)):
        assert left.dtype == right.dtype
        assert torch.equal(left, right), f"output {index}"
    for ones, others in ((one.gradients, other.gradients), (one.buffers, other.buffers)):
        assert ones.keys() == others.keys()
        for name, tensor in ones.items():
            counterpart = others[name]
            assert (tensor is None) == (counterpart is None), name
            assert tensor is None or (counterpart is not None and torch.equal(tensor, counterpart)), name
