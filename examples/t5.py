"""T5-small, an encoder and a decoder, with random weights: every block of the decoder reads what the encoder found.

autopart plan examples/t5.py --devices 2xt4 --mode train
autopart plan examples/t5.py --devices cpu:0,cpu:1
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import Seq2SeqLMOutput

BATCH, SOURCE_TOKENS, TARGET_TOKENS = 8, 64, 32
CONFIG = T5Config(use_cache=False)


def build_model() -> nn.Module:
    model: nn.Module = T5ForConditionalGeneration(CONFIG)
    return model.eval()


def example_inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(CONFIG.vocab_size, (BATCH, SOURCE_TOKENS)),
        "decoder_input_ids": torch.randint(CONFIG.vocab_size, (BATCH, TARGET_TOKENS)),
    }


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(CONFIG.vocab_size, (BATCH, TARGET_TOKENS)),)


def loss_fn(output: Seq2SeqLMOutput, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the translation's tokens."""
    assert output.logits is not None
    return functional.cross_entropy(output.logits.flatten(0, 1), target.flatten())
