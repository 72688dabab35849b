"""What explains a plan beyond its own numbers: other plans, one layer's costs, the next best plan without a cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.plan import Plan

__all__ = ["Alternative", "CutAlternative", "LayerTerms", "LayerTimes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A plan beside the best one."""

    plan: Plan
    trade: str
    """what it gives up against the best plan, and what it saves, in words"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """One layer on one kind of device, for one micro-batch (the optimizer: one step)."""

    kind: str
    origin: Literal["measured", "estimated"]
    basis: str
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTerms:
    """One layer of a plan: where it runs, and what it costs there and elsewhere.  Bytes are of one micro-batch."""

    name: str
    index: int
    stage: int
    devices: tuple[str, ...]
    share: float
    """of its stage's forward and backward"""
    times: tuple[LayerTimes, ...]
    """its own device's kind first"""
    num_parameters: int
    weight_bytes: int
    saved_bytes: int
    peak_bytes: int
    flops: int
    families: tuple[str, ...]
    """of operators, the one with most FLOPs first"""
    bytes_before: int | None
    """that would cross a cut in front of it; None: it may not be cut there"""
    bytes_after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutAlternative:
    """The best plan that does not cut between two layers between which the plan does."""

    to_stage: int
    after_layer: str
    before_layer: str
    cuts: tuple[str, ...] = ()
    """its own cuts that the plan does not have, as ``a | b``"""
    step_seconds: float | None = None
    factor: float | None = None
    """its step / the plan's"""
    reason: str = ""
    """why there is none, else empty"""
