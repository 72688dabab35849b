"""The devices of this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from autopart.errors import DeviceError
from autopart.profiling.devices.catalogue import kind_called_by_torch
from autopart.profiling.devices.overheads import overhead_of
from autopart.schema.device import Device
from autopart.units import format_bytes

__all__ = [
    "LOCAL_NODE",
    "PHYSICAL_MEMORY",
    "cpu_core",
    "cpu_device",
    "cuda_device",
    "devices_here",
    "physical_memory_bytes",
]

LOCAL_NODE = "local"
"""The node of whatever is here, and of whatever the user has not put elsewhere."""

PHYSICAL_MEMORY = "physical memory"

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def devices_here() -> tuple[Device, ...]:
    """Every CUDA device of this machine, then its processor as a whole."""
    return (*(cuda_device(index) for index in range(torch.cuda.device_count())), cpu_device())


def cuda_device(index: int) -> Device:
    """CUDA device ``index`` of this machine.

    Raises:
        DeviceError: there is no such device; the message says what is here.
    """
    num_cards = torch.cuda.device_count()
    if index >= num_cards:
        cards = ", ".join(f"cuda:{card}" for card in range(num_cards)) or "no CUDA device"
        raise DeviceError(
            f"there is no cuda:{index} here, but {cards} and cpu with {torch.get_num_threads()} threads; "
            "take one of these, or a kind from the catalogue (`autopart devices`)"
        )
    properties = torch.cuda.get_device_properties(index)
    known = kind_called_by_torch(properties.name, properties.total_memory)
    overhead = overhead_of("AMD" if torch.version.hip else "NVIDIA")
    return Device(
        name=f"cuda:{index}",
        kind=known.name if known else _slug(properties.name),
        node=LOCAL_NODE,
        memory_bytes=properties.total_memory - overhead.context_bytes,
        memory_origin=f"memory of the card less {format_bytes(overhead.context_bytes)} for CUDA",
        backend="cuda",
        overhead=overhead,
        torch_device=f"cuda:{index}",
        rent_usd_per_hour=known.rent_usd_per_hour.value if known and known.rent_usd_per_hour else None,
    )


def cpu_device() -> Device:
    """The processor of this machine as one device: one process, all threads."""
    num_threads = torch.get_num_threads()
    return Device(
        name="cpu",
        kind=f"cpu-{num_threads}t",
        node=LOCAL_NODE,
        memory_bytes=physical_memory_bytes(),
        memory_origin=PHYSICAL_MEMORY,
        backend="cpu",
        torch_device="cpu",
        num_threads=num_threads,
    )


def cpu_core(index: int, *, speed: float = 1.0) -> Device:
    """An emulated device: a process with one thread, slowed down to ``speed``."""
    return Device(
        name=f"cpu:{index}",
        kind="cpu-1t",
        node=LOCAL_NODE,
        memory_bytes=physical_memory_bytes(),
        memory_origin=PHYSICAL_MEMORY,
        backend="cpu",
        torch_device="cpu",
        num_threads=1,
        speed=speed,
    )


def physical_memory_bytes() -> int:
    """Memory of this machine, or of the container if that has a limit below it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path(path).read_text().strip() for path in _CGROUP_LIMITS if Path(path).is_file()]
    return min([physical, *(int(limit) for limit in limits if limit.isdigit())])


def _slug(torch_name: str) -> str:
    """``NVIDIA GeForce GTX 1660`` becomes gtx-1660."""
    words = re.findall(r"[a-z0-9]+", torch_name.casefold())
    return "-".join(word for word in words if word not in ("nvidia", "amd", "geforce", "tesla", "instinct", "radeon"))
