"""How long convolutions take: as one matrix product, or by Winograd's transforms where the kernel is 3 x 3."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from autopart.profiling.estimating.leastsquares import Array
from autopart.profiling.estimating.matrixproduct import (
    BATCHED_TILES,
    TILES,
    MatrixProduct,
    Products,
    best_tiling,
    blend,
)

__all__ = ["Convolution", "Convolutions", "convolution_seconds"]

IMPLICIT_TILES = tuple(tile for tile in TILES if min(tile) >= 32)
BURST, BURST_SECONDS = 0.6, 2e-3
"""see MatrixProduct; of a T4, the only card that shows it"""

BLEND = 2.0
"""exponent of the norm that joins compute and memory time"""

FUSED_TILES = ((32, 32), (32, 64), (64, 32), (64, 64), (128, 64), (64, 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """The constants of the law (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016)."""

    implicit_efficiency: float
    """share of the sustained rate, as a product of unrolled inputs and weights"""
    fused_efficiency: float
    """of Winograd F(2x2, 3x3): 16 products in one kernel"""
    staged_efficiency: float
    """of Winograd F(4x4, 3x3): 36 products, the transforms in memory"""
    tile_loss: float
    pipeline: float
    transform_traffic: float
    """of F(4x4, 3x3): real / every transformed operand written and read once"""
    weight_passes: float
    """passes over transformed weights before F(2x2, 3x3) starts"""
    channel_seconds: float
    """for every channel, in or out"""
    start_seconds: float
    staged_start_seconds: float
    memory_efficiency: float
    choice: float
    """exponent of the soft minimum over the algorithms: the library picks by rules of thumb"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolutions:
    """Dense convolutions, one per row, each with what its device sustains."""

    samples: Array
    channels_in: Array
    channels_out: Array
    height: Array
    """of the output; the square root of its size where it is not square"""
    kernel: Array
    """elements of the kernel: 9 for 3 x 3"""
    is_winograd: Array
    """3 x 3, stride 1, float32"""
    traffic_bytes: Array
    flops_per_second: Array
    headroom: Array
    bytes_per_second: Array
    num_units: Array

    def where(self, mask: Array) -> Convolutions:
        """The rows at which the mask is true."""
        return Convolutions(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def convolution_seconds(rows: Convolutions, law: Convolution) -> Array:
    """Time of each convolution: the soft minimum over the algorithms, blended with the memory's time."""
    seconds = _implicit(rows, law)
    mask = rows.is_winograd
    if mask.any():
        some = rows.where(mask)
        seconds[mask] = _soft_minimum(law.choice, seconds[mask], _fused(some, law), _staged(some, law))
    memory = rows.traffic_bytes / (law.memory_efficiency * rows.bytes_per_second)
    latency = law.start_seconds + law.channel_seconds * (rows.channels_in + rows.channels_out)
    return np.asarray(latency + _in_burst(blend(BLEND, seconds, memory), rows.headroom))


def _implicit(rows: Convolutions, law: Convolution) -> Array:
    pixels = rows.samples * rows.height**2
    products = _products(rows, np.ones_like(pixels), pixels, rows.channels_in * rows.kernel)
    return best_tiling(products, _law(law, law.implicit_efficiency), IMPLICIT_TILES, (1, 2, 4, 8))


def _fused(rows: Convolutions, law: Convolution) -> Array:
    patches = rows.samples * np.ceil(rows.height / 2) ** 2
    products = _products(rows, np.full_like(patches, 16.0), patches, rows.channels_in)
    weights = law.weight_passes * rows.channels_in * rows.channels_out * (9 + 16) * 4
    return best_tiling(products, _law(law, law.fused_efficiency), FUSED_TILES, (1,)) + weights / (
        law.memory_efficiency * rows.bytes_per_second
    )


def _staged(rows: Convolutions, law: Convolution) -> Array:
    patches = rows.samples * np.ceil(rows.height / 4) ** 2
    products = _products(rows, np.full_like(patches, 36.0), patches, rows.channels_in)
    transformed = patches * (rows.channels_in + rows.channels_out) + rows.channels_in * rows.channels_out
    traffic = law.transform_traffic * 2 * 36 * 4 * transformed
    multiplied = best_tiling(products, _law(law, law.staged_efficiency), BATCHED_TILES, (1,))
    moved = traffic / (law.memory_efficiency * rows.bytes_per_second)
    return np.asarray(law.staged_start_seconds + multiplied + moved)


def _products(rows: Convolutions, batch: Array, m: Array, k: Array) -> Products:
    return Products(
        batch=batch,
        m=m,
        n=rows.channels_out,
        k=k,
        traffic_bytes=np.zeros_like(m),
        flops_per_second=rows.flops_per_second,
        headroom=rows.headroom,
        bytes_per_second=rows.bytes_per_second,
        num_units=rows.num_units,
        batched_float32=np.zeros_like(m),
        long_contraction=np.full_like(m, np.inf),
    )


def _law(law: Convolution, efficiency: float) -> MatrixProduct:
    return MatrixProduct(
        efficiency=efficiency,
        tile_loss=law.tile_loss,
        pipeline=law.pipeline,
        waves=1.0,
        memory_efficiency=law.memory_efficiency,
        blend=BLEND,
        start_seconds=0.0,
        burst=BURST,
        burst_seconds=BURST_SECONDS,
    )


def _in_burst(seconds: Array, headroom: Array) -> Array:
    return np.asarray(seconds / np.minimum(1 + BURST / (1 + seconds / BURST_SECONDS), headroom))


def _soft_minimum(exponent: float, *parts: Array) -> Array:
    """Below the shortest by nothing if all are alike, near the shortest if one is far shorter."""
    shortest = np.min(np.stack(parts), axis=0)
    total = sum((part / shortest) ** -exponent for part in parts)
    return np.asarray(shortest * (total / len(parts)) ** (-1 / exponent))
