"""What the processes of a training and the one that started them tell each other; small files, as of any run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autopart.schema.training import Recipe

__all__ = ["TrainResult", "TrainSpec", "phase_path", "pid_path", "stack_path", "stop_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """What a rank is to do."""

    plan_path: str
    source: str
    """the model source as typed"""
    source_directory: str
    """what relative paths in ``source`` and ``data`` are relative to"""
    directory: str
    """where the rank leaves its result or its failure"""
    devices: tuple[str, ...]
    """names of the plan's devices, by rank"""
    recipe: Recipe
    data: str
    checkpoints: str | None
    resume: bool
    metrics: str
    group_timeout_seconds: float

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return self.recipe.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a rank ended."""

    rank: int
    stopped: bool
    """before the last step, because it was told to"""
    notes: tuple[str, ...]
    versions: tuple[str, ...]


def phase_path(directory: str | Path) -> Path:
    """The file that says what rank 0 is doing: a Phase and its number."""
    return Path(directory) / "phase"


def pid_path(directory: str | Path, rank: int) -> Path:
    """The file with the process number of a rank."""
    return Path(directory) / f"rank{rank}.pid"


def stack_path(directory: str | Path, rank: int) -> Path:
    """The file to which a rank writes where it is when it gets SIGUSR1."""
    return Path(directory) / f"rank{rank}.stack"


def stop_path(directory: str | Path) -> Path:
    """The file that, once it exists, tells rank 0 to stop after the present step, with a checkpoint."""
    return Path(directory) / "stop"
