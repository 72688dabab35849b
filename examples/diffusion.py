"""The U-Net of a diffusion model: it tells the noise in an image, from the image and its time step.

autopart plan examples/diffusion.py --devices rtx-4090,t4 --mode train
autopart plan examples/diffusion.py --devices 2xt4
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

BATCH, CHANNELS, SIZE = 8, 4, 32
WIDTHS = (64, 128, 256)
STEPS, TIME_WIDTH = 1000, 128


class Residual(nn.Module):
    """Two convolutions around the time step, added to what comes in."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm1, self.first = nn.GroupNorm(8, num_in), nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)
        self.time = nn.Linear(TIME_WIDTH, num_out)
        self.norm2, self.second = nn.GroupNorm(8, num_out), nn.Conv2d(num_out, num_out, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(num_in, num_out, kernel_size=1) if num_in != num_out else nn.Identity()

    def forward(self, image: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Maps (batch, num_in, height, width) to (batch, num_out, height, width)."""
        inner = self.first(functional.silu(self.norm1(image))) + self.time(time)[:, :, None, None]
        inner = self.second(functional.silu(self.norm2(inner)))
        summed: torch.Tensor = inner + self.skip(image)
        return summed


class Attention(nn.Module):
    """Every pixel looks at every other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.GroupNorm(8, width), nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Keeps the shape (batch, width, height, width of the image)."""
        pixels = self.norm(image).flatten(2).transpose(1, 2)
        found, _ = self.heads(pixels, pixels, pixels, need_weights=False)
        summed: torch.Tensor = image + found.transpose(1, 2).reshape(image.shape)
        return summed


class Denoiser(nn.Module):
    """Down over three sizes, attention in the middle, and up again with what the way down found."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, TIME_WIDTH), nn.SiLU(), nn.Linear(TIME_WIDTH, TIME_WIDTH))
        self.stem = nn.Conv2d(CHANNELS, WIDTHS[0], kernel_size=3, padding=1)
        ins = (WIDTHS[0], *WIDTHS[:-1])
        self.down = nn.ModuleList(Residual(a, b) for a, b in zip(ins, WIDTHS, strict=True))
        self.middle, self.attention = Residual(WIDTHS[-1], WIDTHS[-1]), Attention(WIDTHS[-1])
        self.up = nn.ModuleList(Residual(2 * b, a) for a, b in zip(reversed(ins), reversed(WIDTHS), strict=True))
        self.head = nn.Conv2d(WIDTHS[0], CHANNELS, kernel_size=3, padding=1)

    def forward(self, noisy: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The noise in (batch, channels, height, width) at time steps (batch,)."""
        time, kept = self.time(_waves(step)), []
        image = self.stem(noisy)
        for block in self.down:
            image = block(image, time)
            kept.append(image)
            image = functional.avg_pool2d(image, 2)
        image = self.attention(self.middle(image, time))
        for block in self.up:
            image = functional.interpolate(image, scale_factor=2)
            image = block(torch.cat([image, kept.pop()], dim=1), time)
        noise: torch.Tensor = self.head(image)
        return noise


def _waves(step: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of a time step (Ho et al. 2020, appendix B)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(TIME_WIDTH // 2, device=step.device) / (TIME_WIDTH // 2))
    angles = step[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def build_model() -> nn.Module:
    return Denoiser()


def example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(BATCH, CHANNELS, SIZE, SIZE), torch.randint(STEPS, (BATCH,))


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randn(BATCH, CHANNELS, SIZE, SIZE),)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(output, target)
