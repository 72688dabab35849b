"""The numbers behind a plan: where time and memory go, and what each cut costs."""

from __future__ import annotations

from dataclasses import dataclass

from autopart.schema.advice import Advice, Sensitivity
from autopart.schema.alternatives import CutAlternative, LayerTerms
from autopart.schema.plan import Memory

__all__ = ["CutTerms", "Explanation", "FullExplanation", "StageTerms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTerms:
    """One stage: times of one micro-batch, and memory."""

    index: int
    devices: tuple[str, ...]
    num_layers: int
    first_layer: str
    last_layer: str
    forward_seconds: float
    backward_seconds: float
    receive_seconds: float
    """values in, and in training the gradients of the same boundary back"""
    stage_seconds: float
    """forward + backward + receive; the largest of it with ``behind_seconds`` decides the throughput"""
    optimizer_seconds: float
    """once per step"""
    slack_seconds: float
    """the bottleneck's stage_seconds + behind_seconds - its own"""
    memory: Memory
    capacity_bytes: int
    free_bytes: int
    behind_seconds: float = 0.0
    """under 1F1B: values out and their gradients back, which a stage waits for as well; under GPipe the gradients that
    come back to it less those that it sends back"""
    capacity_origin: str = ""
    """where the cap comes from, in words: what of the device is left to others"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTerms:
    """The cut in front of stage ``to_stage``."""

    from_stage: int
    to_stage: int
    after_layer: str
    before_layer: str
    num_tensors: int
    bytes: int
    """of one micro-batch, forward"""
    forward_seconds: float
    backward_seconds: float
    per_step_seconds: float
    """both directions, all micro-batches"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The terms of a plan; they add up to ``objective_seconds``, the simulation gives ``step_seconds``."""

    num_microbatches: int
    stages: tuple[StageTerms, ...]
    cuts: tuple[CutTerms, ...]
    bottleneck: int
    """stage with the largest stage_seconds + behind_seconds"""
    one_microbatch_seconds: float
    """sum of stage_seconds"""
    repeated_seconds: float
    """(num_microbatches - 1) * the bottleneck's stage_seconds + behind_seconds; in training under GPipe times the
    longest forward and the longest backward of any stage, with what it receives"""
    once_seconds: float
    """when the last optimizer ends, counted from the first stage's last backward"""
    objective_seconds: float
    step_seconds: float
    bubble_fraction: float
    phases: tuple[int, int] | None = None
    """in training under GPipe: the stages with the longest forward and with the longest backward"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullExplanation:
    """What ``autopart explain plan.json MODEL --json`` prints."""

    explanation: Explanation
    layer: LayerTerms | None
    alternatives: tuple[CutAlternative, ...]
    advice: tuple[Advice, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
