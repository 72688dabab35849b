"""A module of one's own, with what makes splitting hard: tied weights, a running mean, dropout, and outputs by name.

autopart plan examples/custom.py --devices cpu:0,cpu:1 --mode train -o plan.json
autopart run plan.json examples/custom.py --steps 5
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

BATCH, TOKENS, WORDS, WIDTH, BLOCKS = 16, 64, 2_000, 192, 6


class Mixer(nn.Module):
    """Mixes neighbouring tokens and then the features of each; counts how large its values get."""

    mean_size: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.near = nn.LayerNorm(WIDTH), nn.Conv1d(WIDTH, WIDTH, kernel_size=5, padding=2, groups=8)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("mean_size", torch.zeros(()))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keeps the shape (batch, tokens, width)."""
        mixed = tokens + self.near(self.norm(tokens).transpose(1, 2)).transpose(1, 2)
        if self.training:
            self.mean_size.lerp_(mixed.detach().abs().mean(), 0.1)
        summed: torch.Tensor = mixed + self.drop(self.narrow(functional.gelu(self.wide(mixed))))
        return summed


class Speller(nn.Module):
    """Guesses the next word; the table of words is used at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(*(Mixer() for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        """From (batch, tokens) the scores (batch, tokens, words) and the features (batch, tokens, width)."""
        features = self.blocks(self.words(tokens))
        return {"scores": self.head(features) * scale, "features": features}


def build_model() -> nn.Module:
    return Speller()


def example_inputs() -> dict[str, torch.Tensor]:
    return {"tokens": torch.randint(WORDS, (BATCH, TOKENS))}


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(WORDS, (BATCH, TOKENS)),)


def loss_fn(output: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output["scores"].flatten(0, 1), target.flatten())
