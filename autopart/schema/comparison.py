"""Several sets of devices side by side: what each would give, cost and be held up by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autopart.schema.generation import Requests
from autopart.schema.job import Job

__all__ = ["Added", "Comparison", "Criterion", "DeviceSet"]

Criterion = Literal["throughput", "latency", "rent", "devices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What one device of a set adds."""

    device: str
    kind: str
    factor: float | None
    """throughput of the set / that of the set without the device; None: without it nothing fits"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSet:
    """One row: the plan that is best for a set of devices.  Where nothing fits, ``reason`` says why, the rest is None.

    Rents are of the devices that the plan uses, in US dollars, and None unless all of them have one.
    """

    name: str
    """as the user gave it"""
    num_devices: int
    reason: str = ""
    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    num_stages: int | None = None
    num_microbatches: int | None = None
    step_seconds: float | None = None
    throughput_per_second: float | None = None
    """samples, or new tokens where text is generated"""
    latency_seconds: float | None = None
    """of one micro-batch, or until the first token where text is generated"""
    bubble_fraction: float | None = None
    headroom_bytes: int | None = None
    """least free memory of a device in use at its peak"""
    headroom_share: float | None = None
    """of that device's cap"""
    rent_usd_per_hour: float | None = None
    cost_per_million: float | None = None
    """samples, or new tokens where text is generated"""
    cost_per_million_tokens: float | None = None
    """where samples are made of tokens"""
    step_token_seconds: float | None = None
    """where text is generated, of one token of one request"""
    bottleneck: str = ""
    gap: float | None = None
    """the plan is proven to be within it of the best"""
    origin: Literal["measured", "estimated", "mixed"] | None = None
    """where the times come from"""
    adds: tuple[Added, ...] = ()
    pareto: bool = False
    """no other set is at least as good in every criterion and better in one"""

    def __post_init__(self) -> None:
        if (self.throughput_per_second is None) != bool(self.reason):
            raise ValueError(f"{self.name}: either a plan or the reason why there is none")

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return not self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The sets, the fastest first, those that do not fit last."""

    model: str
    job: Job
    criteria: tuple[Criterion, ...]
    """what the Pareto mark is about"""
    sets: tuple[DeviceSet, ...]
    remarks: tuple[str, ...] = ()
    """what was not looked at"""
    requests: Requests | None = None
    """where text is generated: of what"""
    tokens_per_sample: int | None = None
    """where a sample is a sequence of tokens"""
