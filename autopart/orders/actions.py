"""What one rank does next: the words that orders of computing are written in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

__all__ = ["Action", "Deed", "Order", "most_in_flight"]

Deed = Literal["forward", "backward", "input", "weight"]
"""``input`` and ``weight`` are the halves of a backward that zero-bubble parts"""


@dataclass(frozen=True, slots=True)
class Action:
    """One computation of a rank."""

    deed: Deed
    stage: int
    microbatch: int


Order = tuple[Action, ...]
"""what one rank computes, from first to last"""


def most_in_flight(order: Order | list[Action]) -> dict[int, int]:
    """Most micro-batches whose activations each stage of an order keeps at once, from forward to the last backward."""
    alive: Counter[int] = Counter()
    most: dict[int, int] = {}
    for action in order:
        if action.deed == "forward":
            alive[action.stage] += 1
        most[action.stage] = max(most.get(action.stage, 0), alive[action.stage])
        if action.deed in ("backward", "weight"):
            alive[action.stage] -= 1
    return most
