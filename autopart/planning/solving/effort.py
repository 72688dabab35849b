"""How hard to try, and when to stop: what the job says of solving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autopart.schema.job import SolverName

__all__ = ["Effort", "IsOver", "never"]

IsOver = Callable[[], bool]
"""whether a search has to end with what it has"""


def never() -> bool:
    """A search that may take its time."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard to try."""

    solver: SolverName
    gap: float
    deadline: float
    """on the clock"""
    clock: Callable[[], float]

    def left_seconds(self) -> float:
        """Time until the deadline."""
        return self.deadline - self.clock()

    def is_over(self) -> bool:
        """Whether the deadline has passed: every search ends at its next step, with the best plan and bound it has."""
        return self.left_seconds() <= 0
