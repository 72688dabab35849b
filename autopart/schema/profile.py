"""What every layer costs on every kind of device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["KindProfile", "Profile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KindProfile:
    """Times of all layers on one kind of device, one micro-batch, in seconds; tuples run along the layers.

    A device runs at ``device.speed`` times its kind's speed, so its time is the kind's time / speed.
    """

    kind: str
    origin: Literal["measured", "estimated"]
    basis: str
    """on what: 'torch 2.13.0, 1 thread, 5 repeats' or 'roofline, data sheet'"""
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    """zeros for inference"""
    optimizer_seconds: tuple[float, ...]
    """once per step, not per micro-batch; zeros for inference"""
    spread: tuple[float, ...]
    """interquartile range / median of the forward time; zeros when estimated"""
    pace_seconds: float = 0.0
    """time of a fixed piece of work on the machine meanwhile (see ``autopart.pace``); 0 if not taken"""
    unmeasured: tuple[int, ...] = ()
    """of a measured kind, the layers that there was no time for: theirs are estimates, scaled to the measured ones"""
    peak_bytes: tuple[int, ...] = ()
    """most that a layer's forward took at once, by the CUDA allocator, without weights and inputs; empty: unknown"""
    saved_bytes: tuple[int, ...] = ()
    """what a layer's forward left for backward, by the CUDA allocator, outputs included; empty: unknown"""

    computes_as: tuple[tuple[str, str], ...] = ()
    """(data type of the model, wider one that the kind computes it in, having no units for it); empty: none known"""
    dtype: str = ""
    """what its layers are computed in, and timed, instead of the model's half type; "": as built"""

    def __post_init__(self) -> None:
        lengths = {
            len(self.forward_seconds), len(self.backward_seconds), len(self.optimizer_seconds), len(self.spread)
        }
        if len(lengths) != 1:
            raise ValueError(f"profile of {self.kind}: the rows differ in length: {sorted(lengths)}")
        if min((*self.forward_seconds, *self.backward_seconds, *self.optimizer_seconds), default=0.0) < 0:
            raise ValueError(f"profile of {self.kind}: a time is negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The kinds' times for one graph."""

    fingerprint: str
    training: bool
    batch_size: int
    kinds: tuple[KindProfile, ...]

    def kind(self, name: str) -> KindProfile:
        """The times of one kind; KeyError if it is not in the profile."""
        for row in self.kinds:
            if row.kind == name:
                return row
        raise KeyError(name)

    @property
    def origin(self) -> Literal["measured", "estimated", "mixed"]:
        """Where the times come from, over all kinds."""
        origins = {row.origin for row in self.kinds}
        return origins.pop() if len(origins) == 1 else "mixed"
