"""ResNet-50 (torchvision's architecture, from transformers, which needs no torchvision) on small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

NUM_CLASSES = 1000


def build_model() -> nn.Module:
    config = ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck")
    config.num_labels = NUM_CLASSES
    return ResNetForImageClassification(config)


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(2, 3, 96, 96),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(NUM_CLASSES, (2,)),)


def loss_fn(output: Any, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output.logits, target)
