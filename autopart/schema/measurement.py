"""What a run really took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.job import Mode
from autopart.schema.plan import PlanWarning
from autopart.schema.timeline import Event

__all__ = ["Compression", "Measurement", "SingleRun", "StageMeasurement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMeasurement:
    """One stage over the timed steps; medians, times of one micro-batch unless said otherwise."""

    index: int
    device: str
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    """per step"""
    busy_seconds: float
    """per step: computing, the optimizer included"""
    utilisation: float
    peak_bytes: int
    """growth of the resident memory (cpu) or of the allocator's peak (cuda) over the steps, weights included"""
    memory_origin: str = ""
    """how ``peak_bytes`` was measured"""
    layer_seconds: tuple[float, ...] = ()
    """forward of each of its layers, in passes after the timed steps; empty if not taken"""
    receive_seconds: float = 0.0
    """per step and device, told with its first stage: waiting for what computations need; 0 on CUDA devices"""
    send_seconds: float = 0.0
    """likewise: waiting until what was sent is taken, after the last computation"""
    sent_bytes: int = 0
    """likewise: values and gradients to other devices"""
    received_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleRun:
    """The unsplit model on one device, whole batch at once."""

    device: str
    step_seconds: tuple[float, ...]
    median_step_seconds: float
    throughput_per_second: float
    peak_bytes: int
    memory_origin: str = ""
    losses: tuple[float, ...] = ()
    """one per timed step, in training with a loss"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What codecs saved of what crossed between devices, and what they did to the loss."""

    codec: str
    """its name, or ``as planned``"""
    sent_bytes: int
    """per step, over all cuts, values and gradients"""
    plain_bytes: int
    """the same without codecs"""
    loss_change: float | None
    """loss of the last timed step / that of the unsplit model after as many steps - 1; None if not known"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A run of a plan: every timed step, every stage, and the single-device run beside it."""

    format_version: Literal[1] = 1
    mode: Mode
    batch: int
    num_microbatches: int
    schedule: str
    step_seconds: tuple[float, ...]
    """each timed step, the slowest rank's"""
    median_step_seconds: float
    total_seconds: float
    throughput_per_second: float
    losses: tuple[float, ...]
    """one per timed step, in training with a loss"""
    predicted_step_seconds: float
    pace: float | None
    """speed of the machine during the run / when the plan's layers were measured; None if that is not known"""
    core_share: float = 1.0
    """processor time / time of a fixed piece of work on the slowest rank: below 1 others had its core meanwhile"""
    lesson: str = ""
    """what the next plan learns of this run, or why it learns nothing"""
    stages: tuple[StageMeasurement, ...]
    single: SingleRun | None
    """None if no single device can hold the model, or if it was not asked for"""
    single_skipped_because: str
    gain: float | None
    """throughput of the split / throughput of the single device - 1"""
    alternating: bool
    """the steps of both were taken in turn, so that a drift of the machine met both alike"""
    verdict: str
    versions: tuple[str, ...]
    compression: Compression | None = None
    """None: nothing was compressed"""
    emulation: tuple[str, ...] = ()
    """what was emulated, and how, in sentences"""
    warnings: tuple[PlanWarning, ...] = ()
    """what kept devices from computing, and what to change; gains are simulated with the stages' times as measured"""
    events: tuple[Event, ...] = ()
    """the last timed step as it went, since its ranks began together; of a stage of several devices the first's"""

    @property
    def bubble_fraction(self) -> float:
        """Idle share of the devices' time."""
        busy: dict[str, float] = {}
        for stage in self.stages:
            busy[stage.device] = busy.get(stage.device, 0.0) + stage.busy_seconds
        return max(0.0, 1.0 - sum(busy.values()) / (len(busy) * self.median_step_seconds)) if busy else 0.0
