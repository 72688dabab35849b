"""A small U-Net: what the way down finds is needed again on the way up, so values skip across every cut in the middle.

autopart plan examples/unet.py --devices cpu:0,cpu:1
autopart plan examples/unet.py --devices 2xrtx-4090 --mode train
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

BATCH = 8
SIZE = 64
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions that keep the image's size."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)
        self.second = nn.Conv2d(num_out, num_out, kernel_size=3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps (batch, num_in, height, width) to (batch, num_out, height, width)."""
        return functional.relu(self.second(functional.relu(self.first(image))))


class UNet(nn.Module):
    """Halves the image per level going down, doubles it going up, and joins the level's own image on the way."""

    def __init__(self, num_channels: int = 3, num_classes: int = 2) -> None:
        super().__init__()
        widths = (num_channels, *WIDTHS)
        self.down = nn.ModuleList(Block(a, b) for a, b in pairwise(widths))
        self.middle = Block(WIDTHS[-1], 2 * WIDTHS[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, kernel_size=2, stride=2) for w in reversed(WIDTHS))
        self.up = nn.ModuleList(Block(2 * w, w) for w in reversed(WIDTHS))
        self.head = nn.Conv2d(WIDTHS[0], num_classes, kernel_size=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores of every class for every pixel: (batch, num_classes, height, width)."""
        skips = []
        for block in self.down:
            image = block(image)
            skips.append(image)
            image = functional.max_pool2d(image, 2)
        image = self.middle(image)
        for grow, block in zip(self.grow, self.up, strict=True):
            image = block(torch.cat((skips.pop(), grow(image)), dim=1))
        scores: torch.Tensor = self.head(image)
        return scores


def build_model() -> nn.Module:
    return UNet()


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randn(BATCH, 3, SIZE, SIZE),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(2, (BATCH, SIZE, SIZE)),)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, target)
