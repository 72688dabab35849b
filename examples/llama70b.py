"""The shape of Llama 3 70B in bfloat16, on the meta device: 141 GB of weights that are never allocated.

autopart plan examples/llama70b.py --devices 4xa100-sxm-80gb
autopart plan examples/llama70b.py --devices 4xh100-sxm-80gb,4xrtx-4090
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

BATCH = 8
TOKENS = 2048
CONFIG = LlamaConfig(
    vocab_size=128_256,
    hidden_size=8192,
    intermediate_size=28_672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    dtype="bfloat16",
    use_cache=False,
)


def build_model() -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(CONFIG)
    return model.to(torch.bfloat16).eval()


def example_inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.zeros(BATCH, TOKENS, dtype=torch.long, device="meta")}
