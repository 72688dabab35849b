"""How long operators take that mostly move memory: elementwise, softmax, normalisation, embedding, copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from autopart.profiling.estimating.leastsquares import Array
from autopart.profiling.estimating.matrixproduct import blend

__all__ = ["VectorOperator", "Vectors", "vector_seconds"]

Mask: TypeAlias = NDArray[np.bool_]

LONG_ROW = 1024
"""elements; rows up to this length stay in a warp's registers (torch's softmax), longer ones are read again"""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorOperator:
    """The constants of the law."""

    efficiency: float
    """share of the bandwidth"""
    start_seconds: float
    """of a kernel, from its launch to its first operands"""
    blend: float
    """exponent of the norm that joins a kernel's time with its launch"""
    softmax: float
    """real traffic / every operand once, rows up to LONG_ROW"""
    softmax_long: float
    """the same, longer rows"""
    odd_rows: float
    """factor for softmax over rows whose length is not a multiple of four: they do not load as vectors"""
    normalization: float
    """real traffic / every operand once"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Operators, one per row, each with what its device sustains."""

    traffic_bytes: Array
    row_length: Array
    is_softmax: Mask
    is_normalization: Mask
    bytes_per_second: Array
    launch_seconds: Array
    """what a launch takes: a kernel shorter than this waits for the next one"""
    start_seconds: Array
    """what events around the operator add"""


def vector_seconds(rows: Vectors, law: VectorOperator) -> Array:
    """Time of each operator: its traffic at the reached bandwidth, but not less than a launch."""
    factor = np.select(
        [rows.is_softmax & (rows.row_length > LONG_ROW), rows.is_softmax, rows.is_normalization],
        [np.asarray(law.softmax_long), np.asarray(law.softmax), np.asarray(law.normalization)],
        np.asarray(1.0),
    )
    odd = np.where(rows.is_softmax & (rows.row_length % 4 > 0), law.odd_rows, 1.0)
    reached = law.efficiency * rows.bytes_per_second
    kernel = law.start_seconds + rows.start_seconds + factor * odd * rows.traffic_bytes / reached
    return blend(law.blend, kernel, rows.launch_seconds)
