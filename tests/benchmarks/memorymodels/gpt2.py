"""GPT-2 at its real depth, narrower; the head shares its weight with the token embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

CONFIG = GPT2Config(n_embd=256, n_head=4, vocab_size=8000, bos_token_id=0, eos_token_id=0, use_cache=False)
TOKENS = 64


def build_model() -> nn.Module:
    return GPT2LMHeadModel(CONFIG)


def example_inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(CONFIG.vocab_size, (2, TOKENS))}


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(CONFIG.vocab_size, (2, TOKENS)),)


def loss_fn(output: Any, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
