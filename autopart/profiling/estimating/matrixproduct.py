"""How long matrix products take on a device that computes them in tiles, from the device's data sheet."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autopart.profiling.estimating.leastsquares import Array

__all__ = ["MatrixProduct", "Products", "Tiles", "best_tiling", "blend", "in_burst", "product_seconds"]

Tiles = tuple[tuple[int, int], ...]

TILES: Tiles = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (128, 32), (32, 128), (64, 32),
                (32, 64), (32, 32), (16, 64), (64, 16))  # fmt: skip
"""rows and columns of the result that one multiprocessor computes at a time, as in cuBLAS and CUTLASS"""

BATCHED_TILES: Tiles = ((128, 128), (128, 64), (64, 128), (64, 64))
BIG_BATCHED_TILES: Tiles = ((128, 128),)

SPLITS = (1, 2, 4, 8, 16)
"""into how many parts the contraction is cut, to have work for all multiprocessors"""

LONG_LOSS = 0.25
"""of a product whose contraction is twice as long as the device likes"""

SPLIT_SECONDS = 3e-6
"""of the kernel that adds the parts, assumed"""

@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixProduct:
    """The constants of the law, for one way of computing (float32 units, matrix units)."""

    efficiency: float
    """share of the sustained rate that a tile of unlimited size would reach"""
    tile_loss: float
    """harmonic tile size at which half of that is lost to loading the operands"""
    pipeline: float
    """length of contraction whose time a tile needs before its first and after its last step"""
    waves: float
    """share of the work that waits for whole waves of tiles; the rest fills the gaps"""
    memory_efficiency: float
    """share of the bandwidth"""
    blend: float
    """exponent of the norm that joins compute and memory time"""
    start_seconds: float
    """of a kernel, from its launch to its first operands"""
    burst: float
    """how much above the sustained rate a short kernel runs where power limits a long one, as a share"""
    burst_seconds: float
    """time at which half of that is left"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Matrix products (batch of m x k times k x n), one per row, each with what its device sustains."""

    batch: Array
    m: Array
    n: Array
    k: Array
    traffic_bytes: Array
    flops_per_second: Array
    headroom: Array
    """FLOP/s for an instant / sustained FLOP/s; 1 where power is no limit or the device is warm"""
    bytes_per_second: Array
    num_units: Array
    """multiprocessors of the device"""
    batched_float32: Array
    """1 where a batched product in float32 finds small tiles, 2 where it finds large ones only, else 0"""

    long_contraction: Array
    """elements of a contraction beyond which a product slows down; infinite: none"""

    def where(self, mask: Array) -> Products:
        """The rows at which the mask is true."""
        return Products(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def product_seconds(rows: Products, law: MatrixProduct) -> Array:
    """Time of each kernel: the best tiling's compute time, blended with the memory's."""
    compute = np.empty_like(rows.m)
    for choice, tiles, splits in ((0, TILES, SPLITS), (1, BATCHED_TILES, SPLITS), (2, BIG_BATCHED_TILES, SPLITS)):
        mask = rows.batched_float32 == choice
        if mask.any():
            compute[mask] = best_tiling(rows.where(mask), law, tiles, splits)
    memory = rows.traffic_bytes / (law.memory_efficiency * rows.bytes_per_second)
    compute = compute * (1 + LONG_LOSS * np.maximum(rows.k / rows.long_contraction - 1, 0))
    return law.start_seconds + in_burst(blend(law.blend, compute, memory), rows.headroom, law)


def best_tiling(rows: Products, law: MatrixProduct, tiles: Tiles, splits: tuple[int, ...]) -> Array:
    """Compute time with the best tile and split.

    W · 2·tm·tn·(k/s + k0) · units / (e · rate · I/(I + c)), with I = tm·tn/(tm + tn) the intensity of a tile, N the
    number of tiles, W = (1 - q)·max(N/units, 1) + q·ceil(N/units) the waves they take; a split into s parts also
    writes and adds s partial results.
    """
    best = np.full(rows.m.shape, np.inf)
    rate = law.efficiency * rows.flops_per_second / rows.num_units
    waiting = min(law.waves, 1.0)
    for tall, wide in tiles:
        intensity = tall * wide / (tall + wide)
        tile_rate = rate * intensity / (intensity + law.tile_loss)
        num_tiles = np.ceil(rows.m / tall) * np.ceil(rows.n / wide) * rows.batch
        for split in splits:
            share = num_tiles * split / rows.num_units
            waves = (1 - waiting) * np.maximum(share, 1) + waiting * np.ceil(share)
            seconds = waves * 2 * tall * wide * (rows.k / split + law.pipeline) / tile_rate
            if split > 1:
                partial_bytes = 2 * split * rows.batch * rows.m * rows.n * 4
                seconds = seconds + partial_bytes / (1.5 * rows.bytes_per_second) + SPLIT_SECONDS
            best = np.minimum(best, seconds)
    return best


def blend(exponent: float, *parts: Array) -> Array:
    """The p-norm: near the longest of several times, somewhat above it where they are alike."""
    longest = np.maximum(np.max(np.stack(parts), axis=0), 1e-15)
    total = sum((part / longest) ** exponent for part in parts)
    return np.asarray(longest * total ** (1 / exponent))


def in_burst(seconds: Array, headroom: Array, law: MatrixProduct) -> Array:
    """Time when a short kernel runs above the sustained rate."""
    return np.asarray(seconds / np.minimum(1 + law.burst / (1 + seconds / law.burst_seconds), headroom))
