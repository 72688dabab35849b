"""Devices on paper: kinds from the catalogue, the devices of a cluster, and the links between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Cluster", "Device", "DeviceList", "Figure", "Kind", "Link", "LinkKind", "Overhead", "Peak"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a data sheet with where it comes from."""

    value: float
    source: str
    confidence: Literal["high", "medium", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Dense peak rate of one data type."""

    dtype: str
    """float32, tf32, float16, bfloat16, float8 or int8"""
    flops_per_second: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A device type of the catalogue.  Units: bytes, bytes per second, FLOP/s, watts, US dollars."""

    name: str
    vendor: str
    architecture: str
    year: int | None
    memory_bytes: Figure
    bandwidth_bytes_per_second: Figure
    peaks: tuple[Peak, ...]
    link: str
    """name of the link kind between two of these in one node (see profiles/links.yaml)"""
    host_link: str
    """name of the link kind to the host and to other kinds in the node"""
    link_bytes_per_second: Figure | None = None
    """one direction; None: the link kind's own"""
    tdp_watts: Figure | None = None
    num_units: Figure | None = None
    """multiprocessors (SM, CU, cores) that share a kernel's work"""
    price_usd: Figure | None = None
    rent_usd_per_hour: Figure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkKind:
    """A way to join two devices.  Units: seconds, bytes per second; ``efficiency`` is a share."""

    name: str
    latency_seconds: Figure
    bandwidth_bytes_per_second: Figure
    """the data sheet's, one direction"""
    efficiency: Figure
    """what large messages reach of it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What of a device's memory no tensor gets."""

    context_bytes: int = 0
    """of the driver and the framework's libraries, per process; ``Device.memory_bytes`` is without them"""
    reserve_bytes: int = 0
    """left to others at the user's wish (a desktop); ``Device.memory_bytes`` is without them"""
    segment_bytes: int = 0
    """segments of the allocator that are in part use at any time"""
    fragmentation_permille: int = 0
    """of what every step allocates anew, what the allocator holds besides and cannot use"""

    def __post_init__(self) -> None:
        if min(self.context_bytes, self.reserve_bytes, self.segment_bytes, self.fragmentation_permille) < 0:
            raise ValueError("what of a device no tensor gets must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One executor."""

    name: str
    """unique in its cluster: cuda:0, cpu:1, rtx-4090:0, desk"""
    kind: str
    """what its times are looked up by in a Profile: a catalogue name, or the name of the device measured here"""
    node: str
    memory_bytes: int
    """what a plan may use of it: the kind's memory less reserve, or the user's cap"""
    memory_origin: str
    """where ``memory_bytes`` comes from, in words: 'cap given by the user', 'data sheet less 0.6 GB for CUDA', ..."""
    backend: Literal["cuda", "cpu", "absent"]
    """how it can be run from here; ``absent`` devices can be planned for only"""
    torch_device: str | None = None
    """what tensors on it are placed on: cuda:0, cpu; None if absent"""
    num_threads: int | None = None
    """intra-op threads of its process, for cpu devices"""
    speed: float = 1.0
    """of an emulated device: the fraction of its kind's speed at which it runs"""
    rent_usd_per_hour: float | None = None
    uncapped_bytes: int = 0
    """what a plan might use without the user's cap; 0 if there is no cap"""
    overhead: Overhead = Overhead()

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0:
            raise ValueError(f"device {self.name}: memory must be positive")
        if not 0 < self.speed <= 1:
            raise ValueError(f"device {self.name}: speed must be in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A rule about the connection of two devices: ``latency + bytes / bandwidth`` in each direction.

    ``level`` says what the two ``ends`` name: two devices, two kinds inside one node, or two nodes (the same one
    twice: within that node; ``*`` matches any).
    """

    level: Literal["device", "kind", "node"]
    ends: tuple[str, str]
    latency_seconds: float
    bandwidth_bytes_per_second: float
    origin: Literal["measured", "given", "assumed"]
    source: str

    def __post_init__(self) -> None:
        if self.latency_seconds < 0 or self.bandwidth_bytes_per_second <= 0:
            raise ValueError(f"link {self.ends}: latency must not be negative and bandwidth must be positive")

    def matches(self, one: Device, other: Device) -> bool:
        """Whether this rule speaks of these two devices."""
        if self.level == "device":
            names = (one.name, other.name)
        elif self.level == "kind":
            if one.node != other.node:
                return False
            names = (one.kind, other.kind)
        else:
            names = (one.node, other.node)
        return any(
            all(end in ("*", name) for end, name in zip(ends, names, strict=True))
            for ends in (self.ends, self.ends[::-1])
        )

    def seconds(self, num_bytes: int) -> float:
        """Time of one message of ``num_bytes``."""
        return self.latency_seconds + num_bytes / self.bandwidth_bytes_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The devices of a plan and their links; of the link rules the first that matches counts."""

    devices: tuple[Device, ...]
    links: tuple[Link, ...] = field(default=())
    kinds: tuple[Kind, ...] = field(default=())
    """kinds of the user's own; all others are in the catalogue"""

    def __post_init__(self) -> None:
        if not self.devices:
            raise ValueError("a cluster needs at least one device")
        if len({device.name for device in self.devices}) != len(self.devices):
            raise ValueError("device names must differ")

    def device(self, name: str) -> Device:
        """The device of this name; KeyError if there is none."""
        for device in self.devices:
            if device.name == name:
                return device
        raise KeyError(name)

    def link(self, one: Device, other: Device) -> Link:
        """The rule that counts for two different devices; KeyError if none speaks of them."""
        for link in self.links:
            if link.matches(one, other):
                return link
        raise KeyError(f"{one.name}-{other.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceList:
    """What ``autopart devices --json`` prints."""

    here: tuple[Device, ...]
    catalogue: tuple[Kind, ...]
