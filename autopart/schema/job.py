"""What the user wants done: the words of the command line, with underscores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Compress", "Job", "Method", "Mode", "Objective", "Optimizer", "Recompute", "ScheduleName", "SolverName",
    "StageDtype", "usual_optimizer",
]  # fmt: skip

Mode = Literal["infer", "train"]
Objective = Literal["throughput", "latency", "cost", "memory", "devices"]
"""least time of a step, of one request; least dollars a step; least share of a device's memory; fewest devices"""
Optimizer = Literal["adamw", "adam", "momentum", "sgd", "none"]
"""momentum: SGD with a momentum of 0.9; sgd: without"""
ScheduleName = Literal["gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble"]
Recompute = Literal["auto", "never", "always"]
Compress = Literal["none", "auto", "fp16", "bf16", "int8", "topk"]
"""codec of values that cross a cut; auto: fp16 or int8, where that is quicker"""
StageDtype = Literal["keep", "auto"]
"""what layers are computed in on a kind without units for the model's half type: that all the same, or float16 in
inference and float32 in training"""
Method = Literal[
    "optimal", "even", "parameters", "memory-fill", "balanced-bytes", "time-balanced", "speed-proportional", "greedy",
    "chain-dp",
]
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
    master_weights: bool = False
    """the optimizer keeps a float32 copy of every narrower trainable weight, and its states in float32"""
    cache_tokens: int = 0
    """of every sequence, prompt and answer, whose keys and values are kept; 0: no text is generated"""
    cache_sequences: int = 0
    """that are generated at once"""
    rounds: int = 1
    """times that the same micro-batches go through in a step, as where tokens are generated one after the other: no
    more than a round of them is kept"""
    dtype: str | None = None
    """data type the model was cast to; None: as built"""
    objective: Objective = "throughput"
    stages: int | None = None
    method: Method = "optimal"
    solver: SolverName = "auto"
    time_limit_seconds: float = 60.0
    gap: float = 1e-3
    tensor_parallel: int = 1
    """most devices that may share every layer of a stage; the planner chooses 1, 2, 4, ... up to it"""
    data_parallel: int = 1
    """most replicas of a stage that may share a micro-batch; chosen likewise"""
    recompute: Recompute = "never"
    """whether stages keep only the inputs of their layers and run each forward again before its backward"""
    compress: Compress = "none"
    """what may encode values on their way from device to device; all but none change results a little"""
    stage_dtype: StageDtype = "keep"
    """auto: a stage on a kind without units for the model's half type computes in another; changes results a little"""
    pins: tuple[tuple[str, str], ...] = ()
    """(layer, device): the layer runs on that device; a name with dots below it stands for all layers under it"""
    forbidden: tuple[tuple[str, str], ...] = ()
    """(layer, device): the layer does not run on that device"""
    together: tuple[tuple[str, ...], ...] = ()
    """layers that run in one stage, with all that lies between them"""
    max_step_seconds: float | None = None
    """a step may not take longer"""
    max_usd_per_hour: float | None = None
    """the rent of the devices in use may not be more"""
    rents: tuple[tuple[str, float], ...] = ()
    """(device or kind, US dollars per hour), instead of what the catalogue or the cluster file says"""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if self.microbatches is not None and (self.microbatches < 1 or self.batch % self.microbatches):
            raise ValueError(f"a batch of {self.batch} does not divide into {self.microbatches} micro-batches")
        if self.mode == "infer" and self.optimizer != "none":
            raise ValueError("inference has no optimizer")
        if self.master_weights and (self.mode == "infer" or self.optimizer == "none"):
            raise ValueError("master weights are an optimizer's: give training with an optimizer, or leave them out")
        if self.stages is not None and self.stages < 1:
            raise ValueError(f"stages must be at least 1, not {self.stages}")
        if min(self.tensor_parallel, self.data_parallel) < 1:
            raise ValueError("tensor-parallel and data-parallel must be at least 1")
        if self.stage_dtype != "keep" and max(self.tensor_parallel, self.data_parallel) > 1:
            raise ValueError("a stage in a type of its own has one device: leave out groups, or the stage dtype")
        if min(self.cache_tokens, self.cache_sequences) < 0 or (self.cache_tokens > 0) != (self.cache_sequences > 0):
            raise ValueError("a cache of keys and values takes both, tokens and sequences, at least 1")
        if self.rounds < 1 or (self.rounds > 1 and (self.mode == "train" or self.batch % self.rounds)):
            raise ValueError(f"a batch of {self.batch} does not divide into {self.rounds} rounds of inference")
        if self.cache_tokens and self.mode == "train":
            raise ValueError("training keeps no cache of keys and values")
        if self.mode == "infer" and self.recompute != "never":
            raise ValueError("inference keeps nothing for a backward, so there is nothing to recompute")
        if not self.time_limit_seconds > 0 or not 0 <= self.gap < 1:
            raise ValueError("time limit must be positive and gap in [0, 1)")
        if any(limit is not None and not limit > 0 for limit in (self.max_step_seconds, self.max_usd_per_hour)):
            raise ValueError("the most that a step may take, or an hour may cost, must be positive")
        if any(rent < 0 for _, rent in self.rents):
            raise ValueError("rents must not be negative")
        if self.objective == "devices" and self.max_usd_per_hour is not None:
            raise ValueError("the fewest devices are not the cheapest: give a price limit or the objective devices")


def usual_optimizer(mode: str) -> Optimizer:
    """What a job has that names no optimizer, on the command line and from Python: adamw in training, else none."""
    return "adamw" if mode == "train" else "none"
