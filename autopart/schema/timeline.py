"""A step of a pipeline, event by event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Event", "EventKind", "Timeline"]

EventKind = Literal["forward", "backward", "weight", "receive", "optimizer"]
"""``weight``: the half of a backward that makes the weights' gradients, where a schedule parts them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What one stage does from ``start_seconds`` to ``end_seconds`` after the step began."""

    stage: int
    kind: EventKind
    microbatch: int | None
    """None for the optimizer"""
    start_seconds: float
    end_seconds: float
    gradient: bool = False
    """of a receive: a gradient from the next stage, not values from the one before"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """All events of one step, by stage and start; waiting is what lies between them."""

    num_stages: int
    events: tuple[Event, ...]
    step_seconds: float
    """end of the last event"""

    def busy_seconds(self, stage: int) -> float:
        """Computing of one stage: forward, backward and optimizer, not receiving."""
        return sum(
            event.end_seconds - event.start_seconds
            for event in self.events
            if event.stage == stage and event.kind != "receive"
        )
