"""A ViT of 12 layers (the Ti shape) on small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import ViTConfig, ViTForImageClassification

CONFIG = ViTConfig(
    hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=112,
    id2label={index: str(index) for index in range(1000)},
)  # fmt: skip


def build_model() -> nn.Module:
    return ViTForImageClassification(CONFIG)


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, 112, 112),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(1000, (2,)),)


def loss_fn(output: Any, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output.logits, target)
