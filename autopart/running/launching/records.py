"""What one rank and the process that started it tell each other: small JSON files, each written aside then renamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from autopart.schema.codec import CodecName

__all__ = [
    "Act",
    "Death",
    "Deaths",
    "Launchable",
    "RankFailure",
    "RankResult",
    "RankSpec",
    "StageSeconds",
    "Throttle",
    "deaths_path",
    "failure_path",
    "over_path",
    "progress_path",
    "result_path",
    "steps_done",
]

Throttle = Literal["sleep", "quota", "plan"]
"""sleep: work at full speed, then sleep until own CPU time / speed has passed; quota: the kernel gives the process a
part of a core; plan: sleep until the plan's own time of the stage has passed"""


class Launchable(Protocol):
    """What the launcher has to know of what its ranks do."""

    @property
    def directory(self) -> str:
        """Where everything about the ranks is written."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the plan's devices, by rank."""
        ...

    @property
    def num_steps(self) -> int:
        """How many rank 0 will do."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """What a rank is to do."""

    mode: Literal["pipeline", "single"]
    """one stage of the plan, or the whole model as its author wrote it"""
    plan_path: str
    source: str
    """the model source as typed: 'model.py', 'hf:DIR', ..."""
    source_directory: str
    """what relative paths in ``source`` are relative to"""
    directory: str
    """where the rank leaves its result or its failure"""
    devices: tuple[str, ...]
    """names of the plan's devices, by rank"""
    steps: int
    warmup: int
    seed: int
    group_timeout_seconds: float
    alternates_with: str | None = None
    """directory of a run whose steps are taken in turn with this one's, the pipeline's first"""
    layers: bool = False
    """time the layers of a stage one by one after the timed steps"""
    compress: CodecName | None = None
    """a codec for what crosses from rank to rank, instead of the plan's"""
    compress_gradients: Literal["none", "fp16", "bf16"] = "none"
    """what the gradients of data-parallel replicas travel as"""
    emulated: bool = False
    """the plan's devices are emulated: their memory caps are kept, and the links given for them limited"""
    throttle: Throttle = "sleep"
    """how an emulated device is made slow"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0:
            raise ValueError(f"a run needs at least 1 step and no negative warm-up, not {self.steps} and {self.warmup}")

    @property
    def num_steps(self) -> int:
        """Warm-up and timed steps together."""
        return self.warmup + self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Something that a rank did in a step, in seconds since it began."""

    kind: Literal["forward", "backward", "optimizer", "receive"]
    stage: int | None
    """None: of the rank"""
    microbatch: int | None
    start_seconds: float
    end_seconds: float
    gradient: bool = False
    """of a receive: it waited for a gradient"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """What one of several stages of a rank took; tuples run along the timed steps."""

    index: int
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What a rank measured; tuples run along the timed steps, in seconds per step."""

    rank: int
    device: str
    step_seconds: tuple[float, ...]
    forward_seconds: tuple[float, ...]
    backward_seconds: tuple[float, ...]
    optimizer_seconds: tuple[float, ...]
    peak_bytes: int
    memory_origin: str
    losses: tuple[float, ...]
    """of the rank that computes the loss; empty elsewhere and in inference"""
    notes: tuple[str, ...]
    """what the user should know about how this was run"""
    versions: tuple[str, ...]
    pace_seconds: float
    """of a fixed piece of work on this rank, between the timed steps; 0 if not taken"""
    core_share: float = 1.0
    """processor time of that work / the time that passed: below 1 others had the core meanwhile"""
    layer_seconds: tuple[float, ...] = ()
    """forward of each layer of the stage, one micro-batch, in passes after the timed steps; empty if not taken"""
    stages: tuple[StageSeconds, ...] = ()
    """of every stage that the rank runs; empty in the single-device run"""
    receive_seconds: tuple[float, ...] = ()
    """before computations, waiting for what they need; empty if not taken"""
    send_seconds: tuple[float, ...] = ()
    """after the last of them, waiting until what was sent is taken; empty if not taken"""
    out_bytes: int = 0
    """values and gradients sent to other ranks, per step"""
    in_bytes: int = 0
    """received from other ranks, per step"""
    sent_bytes: int = 0
    """of what a codec may encode, to other ranks, per step"""
    plain_bytes: int = 0
    """what that would have been without codecs"""
    compress: CodecName | None = None
    """the codec that was asked for; None: what the plan says"""
    num_paced: int = 0
    """parts of steps, warm-up included, that were to take the plan's own time"""
    num_late: int = 0
    """those of them that took longer"""
    acts: tuple[Act, ...] = ()
    """of the last timed step"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFailure:
    """The exception that ended a rank."""

    rank: int
    device: str
    kind: str
    """class of the exception"""
    message: str
    detail: str
    """traceback lines of the user's own code"""
    is_usage: bool
    """the exception is autopart's own and already says what to do"""
    unix_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How the process of a rank ended, as torch's launcher saw it; a negative exit code is minus the signal."""

    rank: int
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deaths:
    """The ranks that ended badly before torch's launcher stopped the others."""

    deaths: tuple[Death, ...]


def result_path(directory: str | Path, rank: int) -> Path:
    """The file a rank leaves its RankResult in."""
    return Path(directory) / f"rank{rank}.result.json"


def failure_path(directory: str | Path, rank: int) -> Path:
    """The file a rank leaves its RankFailure in."""
    return Path(directory) / f"rank{rank}.failure.json"


def deaths_path(directory: str | Path) -> Path:
    """The file the launcher leaves its Deaths in."""
    return Path(directory) / "deaths.json"


def progress_path(directory: str | Path) -> Path:
    """The file that grows by one byte with every step that rank 0 has done."""
    return Path(directory) / "progress"


def steps_done(directory: str | Path) -> int:
    """How many steps, warm-up included, rank 0 has done."""
    path = progress_path(directory)
    return path.stat().st_size if path.exists() else 0


def over_path(directory: str | Path) -> Path:
    """The file that says that all ranks have ended, well or badly."""
    return Path(directory) / "over"
