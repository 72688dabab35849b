"""Small models for the tests of stages on several devices.

All take tokens and give logits of 19 words, which two devices cannot share evenly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["MODELS", "tokens_of"]

WIDTH, HEAD, NUM_WORDS = 8, 4, 19


def tokens_of(batch: int, seed: int) -> torch.Tensor:
    return torch.randint(0, NUM_WORDS, (batch, 3), generator=torch.Generator().manual_seed(seed))


class Blocks(nn.Module):
    """Residual blocks; the first value is used again at the end, and the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, WIDTH)
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, NUM_WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        start = value = self.embed(tokens)
        for up, down in zip(self.up, self.down, strict=True):
            value = value + down(torch.tanh(up(value)))
        result: torch.Tensor = self.head(self.norm(value * start))
        return result


class Fused(nn.Module):
    """Attention in three writings (fused projection, grouped heads, torch's own layer) and a fused gate."""

    def __init__(self) -> None:
        super().__init__()
        width = 4 * HEAD
        self.embed = nn.Embedding(NUM_WORDS, width)
        self.all = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, 2 * HEAD, bias=False), nn.Linear(width, 2 * HEAD)
        self.query_norm = nn.LayerNorm(HEAD)
        self.layer = nn.TransformerEncoderLayer(width, 4, width, 0.0, batch_first=True)
        self.gates = nn.Linear(width, 4 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, NUM_WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        value = self.embed(tokens)
        num, length, _ = value.shape
        parts = self.all(value).reshape(num, length, 3, 4, HEAD).permute(2, 0, 3, 1, 4)
        first, second, third = parts.unbind(0)
        heads = F.scaled_dot_product_attention(first, second, third, is_causal=True)
        value = value + self.out(heads.transpose(1, 2).reshape(num, length, -1))
        query = self.query_norm(self.query(value).view(num, length, 4, HEAD)).transpose(1, 2)
        pair = [part(value).view(num, length, 2, HEAD).transpose(1, 2) for part in (self.key, self.value)]
        key, values = (each[:, :, None].expand(num, 2, 2, length, HEAD).reshape(num, 4, length, HEAD) for each in pair)
        scores = torch.softmax(query @ key.transpose(-1, -2) + torch.full((length, length), -1e4).triu(1), -1)
        value = self.layer(value + (scores @ values).transpose(1, 2).reshape(num, length, -1))
        gate, up = self.gates(value).chunk(2, -1)
        result: torch.Tensor = self.head(value + self.down(F.silu(gate) * up))
        return result


class Odd(nn.Module):
    """What cannot be sharded: products with a changed weight, values written to in place or sorted; one made twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, WIDTH)
        self.mix = nn.Parameter(torch.rand(WIDTH, WIDTH))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, NUM_WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        value = F.linear(self.embed(tokens), self.mix / self.mix.norm())
        inner = self.up(value)
        inner[:, 0] = 0.5
        inner.mul_(2.0)
        inner = torch.tanh(inner.sort(-1).values + self.up(value + 1.0))
        result: torch.Tensor = self.head(self.down(inner) + value)
        return result


class Channels(nn.Module):
    """Convolutions in pairs, by groups and transposed, with normalisations; activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, WIDTH)
        self.first, self.second = nn.Conv1d(WIDTH, 12, 3, padding=1, bias=False), nn.Conv1d(12, WIDTH, 1)
        self.batch = nn.BatchNorm1d(12)
        self.wide, self.deep = nn.Conv1d(WIDTH, 12, 1), nn.Conv1d(12, 12, 3, padding=1, groups=12)
        self.group, self.back = nn.GroupNorm(6, 12), nn.ConvTranspose1d(12, WIDTH, 1)
        self.pool, self.head = nn.MaxPool1d(3, 1, 1), nn.Linear(WIDTH, NUM_WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        value = self.embed(tokens).transpose(1, 2)
        value = self.second(self.batch(self.first(value)).relu_()) + value
        inner = F.silu(self.group(self.deep(self.wide(value))))
        result: torch.Tensor = self.head((self.back(self.pool(inner)) + value).transpose(1, 2))
        return result


class Dropping(nn.Module):
    """Dropout where values are whole and where they are sharded; of probability 0 in effect, as it is scaled back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, NUM_WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        value = self.embed(tokens)
        kept = F.dropout(value, 1e-12)
        inner = F.dropout(torch.tanh(self.up(kept)), 1e-12)
        result: torch.Tensor = self.head(value + F.dropout(self.down(inner), 1e-12))
        return result


MODELS: dict[str, Callable[[], nn.Module]] = {
    "blocks": Blocks, "fused": Fused, "odd": Odd, "channels": Channels, "dropout": Dropping,
}  # fmt: skip
