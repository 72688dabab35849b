"""A plan: which device runs what, how long it takes, how good that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.advice import Advice, Sensitivity
from autopart.schema.codec import CodecName
from autopart.schema.device import Cluster
from autopart.schema.generation import Generation
from autopart.schema.job import Job, Method, ScheduleName

__all__ = [
    "FORMAT_VERSION",
    "Baseline",
    "Check",
    "Excluded",
    "Least",
    "Memory",
    "ModelSummary",
    "Origin",
    "Plan",
    "PlanWarning",
    "Prediction",
    "Proof",
    "Schedule",
    "Stage",
    "Transfer",
]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """Which model the plan is for."""

    name: str
    fingerprint: str
    num_layers: int
    num_parameters: int
    tracer: str = ""
    """what captured it; empty if not recorded"""
    opaque: tuple[str, ...] = ()
    """submodules that no trace for this plan looks into, because it would not do what they do; ``""``: the model"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The terms of a stage's peak memory, in bytes."""

    parameters: int
    """parameters and buffers"""
    gradients: int
    optimizer: int
    activations: int
    """saved for backward, times the micro-batches in flight; boundary values held for inference"""
    workspace: int
    """the largest set of tensors alive while one layer runs, beyond what is saved"""
    communication: int
    """receive buffers, and gradients kept until they are sent"""
    loss: int = 0
    """last stage: the model's outputs and what the loss saves, times the micro-batches in flight"""
    not_at_once: int = 0
    """the terms' own peaks are not all at one time; what that makes less, to be taken off their sum"""
    fragmentation: int = 0
    """reserve for what the device's allocator holds and cannot use"""
    kv_cache: int = 0
    """keys and values of the tokens so far, where text is generated"""

    @property
    def total(self) -> int:
        """Peak: the sum of the terms, less what of them is never there together."""
        return (
            self.parameters + self.gradients + self.optimizer + self.activations
            + self.loss + self.workspace + self.communication + self.fragmentation + self.kv_cache - self.not_at_once
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one device (or device group) runs in one go.  Times are for one micro-batch."""

    index: int
    devices: tuple[str, ...]
    layers: tuple[str, ...]
    tensor_parallel: int = 1
    data_parallel: int = 1
    recompute: bool = False
    parameter_bytes: int
    peak_bytes: int
    capacity_bytes: int
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    """once per step; with the exchange of tied weights' gradients"""
    exchanges_with: tuple[int, ...] = ()
    """stages that hold a copy of one of its tied weights; in training they exchange gradients once per step"""
    utilisation: float
    """computing time / step time"""
    memory: Memory
    pace_seconds: float = 0.0
    """of a fixed piece of work on the device when its layers were measured; 0 if they were not"""
    weights: tuple[str, ...] = ()
    """names of the parameters and buffers it holds, a tied one under its first name; empty if not recorded"""
    layer_seconds: tuple[float, ...] = ()
    """forward of each layer on one device, as its profile says; empty if not recorded or if several share the stage"""
    computes_as: tuple[tuple[str, str], ...] = ()
    """(data type of its layers, wider one that its devices compute it in, having no units for it: that is its time)"""
    dtype: str = ""
    """it computes in this type what the model does in bfloat16 (or, if this is float32, in float16); "": as built"""

    def __post_init__(self) -> None:
        if not self.devices or not self.layers:
            raise ValueError(f"stage {self.index} needs a device and a layer")
        if self.peak_bytes != self.memory.total:
            raise ValueError(f"stage {self.index}: peak_bytes is not the sum of its terms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One tensor crossing from a stage to the next, once per micro-batch, forward; seconds are of one crossing.

    A value that skips stages is relayed: it has one transfer per boundary.
    """

    tensor: str
    from_stage: int
    to_stage: int
    bytes: int
    seconds: float
    backward_seconds: float = 0.0
    """of its gradient's way back; 0 in inference and for values without gradient"""
    codec: CodecName = "none"
    """what it is encoded by; ``bytes`` are those that are sent"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The order in which stages run micro-batches."""

    name: ScheduleName
    num_microbatches: int
    warmup: tuple[int, ...]
    """per stage, forward micro-batches before its first backward (training); 0 for inference"""
    prefetch: int = 0
    """computations that a receive is posted before it is needed; 0: as torch's schedules do"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a step will take, from the simulation of its schedule."""

    step_seconds: float
    latency_seconds: float
    """of one micro-batch through all stages, forward"""
    throughput_per_second: float
    """samples"""
    bubble_fraction: float
    """idle share of the used devices' time"""
    cost_per_million: float | None
    """US dollars of rent per million samples, if every device used has a rent"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Least:
    """What other than time was made least, and that no plan that fits and keeps the job's limits has less."""

    quantity: Literal["usd_per_step", "memory_share", "devices"]
    """rent of the devices in use for one step; largest share of its cap that a device needs; devices in use"""
    value: float
    bound: float
    """no plan has less"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """How good the plan is: for no plan that fits is the objective below ``bound_seconds``.

    The objective is the step-time formula of docs/model.md.  For inference it is the simulated step time; for training
    with 1F1B a simulated step can be a little shorter than the formula, and the plan warns where that matters.
    """

    objective_seconds: float
    bound_seconds: float
    bound: str
    """name of the bound"""
    gap: float
    """objective / bound - 1; of ``least`` where there is one"""
    outcome: Literal["proven", "feasible", "unproven-baseline"]
    solver: str
    solve_seconds: float
    least: Least | None = None
    """None: time is what was made least"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A device that the plan leaves out, and why."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWarning:
    """Something the user should know, with what to do about it."""

    code: str
    message: str
    suggestion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was compared between the plan's split of the model and the unsplit model, and what came out."""

    name: Literal["values", "devices"]
    """values: outputs, gradients and buffers of a run; devices: every operator's tensors on one, by fake tensors"""
    outcome: Literal["passed", "failed", "skipped"]
    detail: str
    """of a check that was skipped or failed, why"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a simpler way would give; ``factor`` is its step time (objective latency: its latency) / the plan's."""

    name: Method | Literal["single-device"]
    description: str
    fits: bool
    step_seconds: float | None
    factor: float | None
    reason: str
    """why it does not fit, else empty"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the times come from."""

    profile: Literal["measured", "estimated", "mixed"]
    bases: tuple[str, ...]
    """one line per kind: 'cpu-1t: measured, torch 2.13.0, 5 repeats'"""
    links: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole answer; its JSON is the product's stable format."""

    format_version: Literal[1] = 1
    verdict: str
    model: ModelSummary
    job: Job
    cluster: Cluster
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    schedule: Schedule
    prediction: Prediction
    proof: Proof
    baselines: tuple[Baseline, ...]
    excluded: tuple[Excluded, ...]
    warnings: tuple[PlanWarning, ...]
    origin: Origin
    checks: tuple[Check, ...] = ()
    """empty: nothing was checked (``--no-verify``)"""
    generation: Generation | None = None
    """where text is generated (``--mode generate``), what that gives; a sample of the job is a token then"""
    advice: tuple[Advice, ...] = ()
    """what would be better, the largest gain first, then what there is to know; empty: none was sought or found"""
    sensitivity: tuple[Sensitivity, ...] = ()
    """what would change the plan; empty: it was not looked for"""

    def __post_init__(self) -> None:
        if [stage.index for stage in self.stages] != list(range(len(self.stages))) or not self.stages:
            raise ValueError("stages must be numbered from 0")
        known = {device.name for device in self.cluster.devices}
        used = [name for stage in self.stages for name in stage.devices]
        left_out = [excluded.device for excluded in self.excluded]
        if not known.issuperset(used) or sorted([*set(used), *left_out]) != sorted(known):
            raise ValueError("every device is used or excluded with a reason")
        shared = {name for name in used if used.count(name) > 1}
        if any(len(stage.devices) > 1 and shared.intersection(stage.devices) for stage in self.stages):
            raise ValueError("a device of a group runs one stage only")
        if sum(len(stage.layers) for stage in self.stages) != self.model.num_layers:
            raise ValueError("the stages' layers do not add up to the model's")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of every stage: devices, numbered in the order of their first stages."""
        first = [stage.devices[0] for stage in self.stages]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(first))}
        return tuple(numbers[name] for name in first)

    @property
    def devices_by_rank(self) -> tuple[str, ...]:
        """The device of every rank, of a group the first."""
        return tuple(dict.fromkeys(stage.devices[0] for stage in self.stages))
