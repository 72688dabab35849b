"""ResNet-50 for 224 x 224 images with random weights, from torchvision, or from transformers where that is missing.

autopart plan examples/resnet50.py --devices 2xt4
autopart plan examples/resnet50.py --devices 1xa100-sxm-40gb,1xt4 --mode train --batch 64
"""

from __future__ import annotations

import importlib.util

import torch
from torch import nn
from torch.nn import functional

BATCH = 8
NUM_CLASSES = 1000


def build_model() -> nn.Module:
    if importlib.util.find_spec("torchvision"):
        from torchvision.models import resnet50

        model: nn.Module = resnet50(weights=None, num_classes=NUM_CLASSES)
        return model
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck")
    config.num_labels = NUM_CLASSES
    return ResNetForImageClassification(config)


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(BATCH, 3, 224, 224),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(NUM_CLASSES, (BATCH,)),)


def loss_fn(output: object, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the class scores: torchvision returns them bare, transformers as ``output.logits``."""
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits")  # noqa: B009
    return functional.cross_entropy(logits, target)
