"""U-Nets: the shapes of skip connections that people really train."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from tests.zoology.specimen import Case, Specimen

__all__ = ["specimens"]


def specimens() -> list[Specimen]:
    """One of each."""
    return [Specimen(name=f"unet:{name}", build=functools.partial(_build, name)) for name in _MODELS]


def _build(name: str) -> Case:
    torch.manual_seed(0)
    make, shape = _MODELS[name]
    kwargs = {"time": torch.rand(2), "context": torch.randn(2, 5, 32)} if name == "diffusion" else {}
    return Case(model=make(), args=(torch.randn(2, *shape),), kwargs=kwargs)


def _double(
    num_in: int, num_out: int, conv: Callable[..., nn.Module] = nn.Conv2d,
    norm: Callable[..., nn.Module] = nn.BatchNorm2d,
) -> nn.Module:  # fmt: skip
    layers: list[nn.Module] = []
    for first in (num_in, num_out):
        layers += [conv(first, num_out, 3, padding=1), norm(num_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Plain(nn.Module):
    """Ronneberger et al. 2015, with transposed convolutions."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64), volume: bool = False) -> None:
        super().__init__()
        conv, up = (nn.Conv3d, nn.ConvTranspose3d) if volume else (nn.Conv2d, nn.ConvTranspose2d)
        norm = nn.InstanceNorm3d if volume else nn.BatchNorm2d
        self.pool: nn.Module = nn.MaxPool3d(2) if volume else nn.MaxPool2d(2)
        inner = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(_double(one, two, conv, norm) for one, two in [(3, widths[0]), *inner])
        self.grow = nn.ModuleList(up(two, one, 2, stride=2) for one, two in reversed(inner))
        self.up = nn.ModuleList(_double(2 * one, one, conv, norm) for one, _ in reversed(inner))
        self.head = conv(widths[0], 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for index, block in enumerate(self.down):
            image = block(self.pool(image) if index else image)
            skips.append(image)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            image = block(torch.cat([skips.pop(), grow(image)], 1))
        result: torch.Tensor = self.head(image)
        return result


class Gated(nn.Module):
    """Attention U-Net (Oktay et al. 2018): skips are gated by what is below; deep supervision as a list."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        inner = list(itertools.pairwise(widths))
        self.down = nn.ModuleList(_double(one, two) for one, two in [(3, widths[0]), *inner])
        self.gate = nn.ModuleList(nn.Conv2d(one + two, 1, 1) for one, two in reversed(inner))
        self.up = nn.ModuleList(_double(one + two, one) for one, two in reversed(inner))
        self.heads = nn.ModuleList(nn.Conv2d(one, 1, 1) for one, _ in reversed(inner))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        skips: list[torch.Tensor] = []
        for block in self.down:
            image = block(functional.avg_pool2d(image, 2) if skips else image)
            skips.append(image)
        skips.pop()
        found = []
        for gate, block, head in zip(self.gate, self.up, self.heads, strict=True):
            skip, below = skips.pop(), functional.interpolate(image, scale_factor=2.0, mode="bilinear")
            weight = torch.sigmoid(gate(torch.cat([skip, below], 1)))
            image = block(torch.cat([skip * weight, below], 1))
            found.append(head(image))
        return found


class Nested(nn.Module):
    """UNet++ (Zhou et al. 2018): every node takes all earlier nodes of its level."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16, 24)) -> None:
        super().__init__()
        self.depth = len(widths)
        self.nodes = nn.ModuleDict()
        for column in range(self.depth):
            for level in range(self.depth - column):
                num_in = (3, *widths)[level] if column == 0 else column * widths[level] + widths[level + 1]
                self.nodes[f"{level}{column}"] = _double(num_in, widths[level])
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        found: dict[tuple[int, int], torch.Tensor] = {}
        for column in range(self.depth):
            for level in range(self.depth - column):
                if column:
                    below = functional.interpolate(found[level + 1, column - 1], scale_factor=2.0)
                    given = torch.cat([*(found[level, each] for each in range(column)), below], 1)
                else:
                    given = functional.max_pool2d(found[level - 1, 0], 2) if level else image
                found[level, column] = self.nodes[f"{level}{column}"](given)
        return {"mask": self.head(found[0, self.depth - 1]), "early": found[0, 1]}


class _Timed(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(num_in, num_out, 3, padding=1), nn.Conv2d(num_out, num_out, 3, padding=1)
        self.time, self.norm = nn.Linear(32, num_out), nn.GroupNorm(4, num_out)
        self.skip = nn.Conv2d(num_in, num_out, 1) if num_in != num_out else nn.Identity()

    def forward(self, image: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        found = functional.silu(self.norm(self.one(image))) + self.time(time)[:, :, None, None]
        mixed: torch.Tensor = self.two(functional.dropout(found, 0.1, self.training)) + self.skip(image)
        return mixed


class _Cross(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, 4, kdim=32, vdim=32, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        rows = image.flatten(2).transpose(1, 2)
        found, _ = self.attend(self.norm(rows), context, context, need_weights=False)
        mixed: torch.Tensor = (rows + found).transpose(1, 2).reshape(image.shape)
        return mixed


class Diffusion(nn.Module):
    """As in latent diffusion: time embedding, cross-attention to a context, two blocks per level."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 32)) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.first = nn.Conv2d(3, widths[0], 3, padding=1)
        steps = list(zip((widths[0], *widths), widths, strict=False))
        self.down = nn.ModuleList(_Timed(one, two) for one, two in steps)
        self.look = nn.ModuleList(_Cross(two) for _, two in steps)
        self.middle = _Timed(widths[-1], widths[-1])
        self.up = nn.ModuleList(_Timed(2 * two, one) for one, two in reversed(steps))
        self.last = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, image: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, ...]:
        angles = time[:, None] * torch.exp(-torch.arange(8, device=time.device) / 2.0)
        told = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        image = self.first(image)
        skips: list[torch.Tensor] = []
        for block, look in zip(self.down, self.look, strict=True):
            image = look(block(image, told), context)
            skips.append(image)
            image = functional.avg_pool2d(image, 2)
        image = self.middle(image, told)
        for block in self.up:
            image = block(torch.cat([functional.interpolate(image, scale_factor=2.0), skips.pop()], 1), told)
        return self.last(functional.silu(image)), told


class Cascade(nn.Module):
    """Two U-Nets, the second with the first one's output (W-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.mix = Plain((8, 16, 16)), Plain((8, 16, 16)), nn.Conv2d(5, 3, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coarse = self.first(image)
        return coarse, self.second(self.mix(torch.cat([image, coarse], 1)))


_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (Plain, (3, 32, 32)),
    "volume": (functools.partial(Plain, (4, 8, 16), volume=True), (3, 8, 16, 16)),
    "gated": (Gated, (3, 32, 32)),
    "nested": (Nested, (3, 32, 32)),
    "diffusion": (Diffusion, (3, 32, 32)),
    "cascade": (Cascade, (3, 32, 32)),
}
