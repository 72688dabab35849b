"""What a comparison of a split model with the unsplit one covered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.job import Mode
from autopart.schema.plan import Check

__all__ = ["Verification"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Everything listed was equal; a difference raises MismatchError instead."""

    format_version: Literal[1] = 1
    model: str
    mode: Mode
    num_stages: int
    batch: int
    """samples in the one micro-batch that was compared"""
    equal: tuple[str, ...]
    """what was compared: 'outputs', 'gradients', ..."""
    checks: tuple[Check, ...] = ()
