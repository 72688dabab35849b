"""What ``autopart trace`` found: the model on paper, with its sums and with what every cut costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.graph import Layer, Note, Value, Weight

__all__ = ["Cut", "TraceReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A place at which the model may be cut."""

    boundary: int
    """before the layer of this index"""
    layer: str
    """its name"""
    tensors: tuple[str, ...]
    bytes: int
    """that travel forward, for one micro-batch"""
    gradient_bytes: int
    """that travel back, in training"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReport:
    """All figures are for one micro-batch of ``batch_size`` samples, forward."""

    format_version: Literal[1] = 1
    model: str
    fingerprint: str
    tracer: str
    training: bool
    batch_size: int
    num_parameters: int
    parameter_bytes: int
    """of parameters and buffers, tied ones once"""
    flops: int
    saved_bytes: int
    """kept from forward for backward; 0 in inference"""
    layers: tuple[Layer, ...]
    weights: tuple[Weight, ...]
    values: tuple[Value, ...]
    cuts: tuple[Cut, ...]
    notes: tuple[Note, ...]
