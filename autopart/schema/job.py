"""What the user wants done: the words of the command line, with underscores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Job", "Method", "Mode", "Objective", "Optimizer", "ScheduleName", "SolverName"]

Mode = Literal["infer", "train"]
Objective = Literal["throughput", "latency"]
Optimizer = Literal["adamw", "adam", "sgd", "none"]
ScheduleName = Literal["gpipe", "1f1b"]
Method = Literal["optimal", "even", "memory-fill", "time-balanced"]
SolverName = Literal["auto", "highs", "cbc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One planning job.

    ``batch`` is the number of samples of one step.  ``microbatches`` None means that the planner chooses; the same
    for ``stages`` and ``schedule``.  ``gap`` is relative, ``time_limit_seconds`` is for all solver runs together.
    """

    mode: Mode = "infer"
    batch: int
    microbatches: int | None = None
    schedule: ScheduleName | None = None
    optimizer: Optimizer = "none"
    dtype: str | None = None
    """data type the model was cast to; None: as built"""
    objective: Objective = "throughput"
    stages: int | None = None
    method: Method = "optimal"
    solver: SolverName = "auto"
    time_limit_seconds: float = 60.0
    gap: float = 1e-3

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if self.microbatches is not None and (self.microbatches < 1 or self.batch % self.microbatches):
            raise ValueError(f"a batch of {self.batch} does not divide into {self.microbatches} micro-batches")
        if self.mode == "infer" and self.optimizer != "none":
            raise ValueError("inference has no optimizer")
        if self.stages is not None and self.stages < 1:
            raise ValueError(f"stages must be at least 1, not {self.stages}")
        if not self.time_limit_seconds > 0 or not 0 <= self.gap < 1:
            raise ValueError("time limit must be positive and gap in [0, 1)")
