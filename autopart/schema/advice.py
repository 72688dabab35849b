"""What would be better, and what would change a plan: each found by solving or simulating, none by rule of thumb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Advice", "AdviceCode", "Altered", "Quantity", "Sensitivity", "Variant"]

Quantity = Literal["speed", "bandwidth", "memory"]

AdviceCode = Literal[
    "splitting", "bound", "device-adds", "leave-out", "larger-batch", "microbatches", "schedule", "compress", "link",
    "uneven", "concurrency", "weights", "groups",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A plan of a changed problem, without proof: the best path of the planner's dynamic program."""

    step_seconds: float
    """simulated; of objective latency that of one request; of generated text one token of every request"""
    samples_per_second: float
    """of generated text new tokens"""
    num_microbatches: int
    """of generated text groups of requests"""
    devices: tuple[tuple[str, ...], ...]
    """of every stage"""
    boundaries: tuple[int, ...]
    """stage s runs layers boundaries[s] .. boundaries[s + 1] - 1"""
    stage_seconds: tuple[float, ...]
    """of every stage, one micro-batch with its way in"""
    ways: tuple[tuple[int, int, bool], ...] = ()
    """of every stage: devices that share its layers, replicas, whether it computes anew; () if all have one device"""

    @property
    def num_devices(self) -> int:
        """Devices in use."""
        return len({name for names in self.devices for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One thing to do, or to know, about a plan."""

    code: AdviceCode
    message: str
    gain: float | None
    """samples per second with it / as planned; None: it is something to know, or costs more than it gives"""
    basis: Literal["solved", "simulated"]
    """solved: planned anew; simulated: this plan with other times"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """What a step takes after a change; None: it does not fit."""

    kept_seconds: float | None
    """by this plan"""
    best_seconds: float | None
    """by the best plan then"""
    instead: str
    """what the best plan does then that this one does not, in words; empty: it is this one"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What a plan does when one thing is twice, or half, what it is taken to be."""

    quantity: Quantity
    of: str
    """a kind of device; of bandwidth two ends, or ``all links``"""
    value: float | None
    """as it is: bytes per second, bytes; None: of speed, and of links that differ"""
    halved: Altered
    doubled: Altered
    other_below: float | None
    """another plan is better where the thing is less than this multiple of itself, down to an eighth; None: nowhere"""
    other_above: float | None
    """another plan is better where it is more than this multiple, up to eight times"""
