"""What an examination finds: one line of the results file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ORDER", "Check", "Result", "Rival"]

ORDER = ("WRONG", "crash", "killed", "unsteady", "refused", "one device", "equal", "not built")
"""verdicts, the worst first; a specimen's verdict is the worst of its checks'"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One mode and number of stages."""

    mode: str
    num_stages: int
    """as asked for"""
    verdict: str
    reason: str = ""
    found_stages: int = 0
    tracer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """What torch's own pipeline() did with two stages in train mode."""

    verdict: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One specimen."""

    name: str
    key: str
    """of the versions and the code that were examined"""
    verdict: str
    reason: str = ""
    checks: tuple[Check, ...] = ()
    num_layers: int = 0
    num_parameters: int = 0
    cpu_seconds: float = 0.0
    traceback: str = ""
    notes: tuple[str, ...] = ()
    rival: Rival | None = None

    @property
    def is_split(self) -> bool:
        """Equal in both modes, in at least two stages."""
        return self.verdict == "equal"
