"""The constants of the laws, read from profiles/estimate.yaml, which ``profiling.calibrating.calibrate`` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from autopart.profiling.estimating.convolution import Convolution
from autopart.profiling.estimating.matrixproduct import MatrixProduct
from autopart.profiling.estimating.vectors import VectorOperator

__all__ = ["Attention", "EventTiming", "FitError", "LawFile", "Laws", "law_file", "shipped_laws"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The constants of fused attention."""

    full_efficiency: float
    """share of the sustained rate in float32"""
    half_efficiency: float
    """the same on matrix units"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Laws:
    """The constants of all laws."""

    product_full: MatrixProduct
    """on float32 units"""
    product_half: MatrixProduct
    """on matrix units: half types, TF32"""
    convolution: Convolution
    convolution_half: float
    """rate of a convolution on matrix units / of the same matrix product"""
    depthwise_traffic: float
    """of a convolution with few channels per group: real / every operand once"""
    attention: Attention
    vector: VectorOperator


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTiming:
    """What events around a lone operator add to its kernel: times below which nothing is ever measured, in seconds.

    Only for comparison with such measurements; inside a model the processor runs ahead of the device.
    """

    linear: float
    batched: float
    product_blend: float
    elementwise: float
    softmax: float
    normalization: float
    start: float
    """added to every kernel that moves memory"""
    normalization_start: float
    vector_blend: float
    convolution_start: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FitError:
    """How far estimates were off, as shares: 0.1 is 10 %."""

    what: str
    how: str
    rows: int
    mean: float
    median: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LawFile:
    """What profiles/estimate.yaml holds."""

    command: str
    laws: Laws
    events: EventTiming
    errors: tuple[FitError, ...]


@cache
def law_file() -> LawFile:
    """The shipped constants with the errors of their fit."""
    installed = resources.files("autopart") / "profiles"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "profiles"
    content: Mapping[str, Any] = yaml.safe_load((folder / "estimate.yaml").read_text(encoding="utf-8"))
    return TypeAdapter(LawFile).validate_python(content)


def shipped_laws() -> Laws:
    """The shipped constants."""
    return law_file().laws
