"""GPT-2 (124 million parameters) in its real size with random weights; nothing is downloaded.

autopart plan examples/gpt2.py --devices cpu:0,cpu:1 -o plan.json
autopart run plan.json examples/gpt2.py --steps 5

The head shares its weight with the token embedding, and the training loss is that of the next token.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions

BATCH = 24
TOKENS = 128
CONFIG = GPT2Config(use_cache=False)


def build_model() -> nn.Module:
    model: nn.Module = GPT2LMHeadModel(CONFIG)
    return model.eval()


def example_inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(CONFIG.vocab_size, (BATCH, TOKENS))}


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(CONFIG.vocab_size, (BATCH, TOKENS)),)


def loss_fn(output: CausalLMOutputWithCrossAttentions, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every position's prediction with the token after it."""
    assert output.logits is not None
    predictions = output.logits[:, :-1].flatten(0, 1)
    return functional.cross_entropy(predictions, target[:, 1:].flatten())
