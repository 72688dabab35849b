"""A Llama shape of 16 layers with grouped queries, narrow."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    vocab_size=8000, hidden_size=256, intermediate_size=688, num_hidden_layers=16, num_attention_heads=8,
    num_key_value_heads=4, use_cache=False,
)  # fmt: skip
TOKENS = 64


def build_model() -> nn.Module:
    return LlamaForCausalLM(CONFIG)


def example_inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(CONFIG.vocab_size, (2, TOKENS))}


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(CONFIG.vocab_size, (2, TOKENS)),)


def loss_fn(output: Any, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
