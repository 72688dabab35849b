"""How much memory a device needs while it steps.

On a CUDA device the allocator knows.  On the CPU the storages of all tensors are counted while they live, in two
warm-up steps, since that slows them down: the second has what the first leaves behind, gradients and optimizer states.
With fewer warm-up steps the growth of the process's resident set stands in, on top of the weights, whose bytes are
known exactly.  So neither the interpreter nor its imports nor the rest of the model, loaded and dropped, are charged.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

from autopart.livebytes import LiveBytes
from autopart.running.emulating.memorycap import MemoryCap

__all__ = [
    "AllocatorMeter",
    "LiveMeter",
    "MemoryMeter",
    "ResidentMeter",
    "available_memory_bytes",
    "meter_for",
    "storage_bytes",
    "trim",
]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryMeter(Protocol):
    """Watches the peak from its making on."""

    origin: str

    def observe(self) -> None:
        """Called after every step, for meters that can only sample."""
        ...

    def peak_bytes(self) -> int:
        """The peak so far, weights included."""
        ...


class LiveMeter:
    """Bytes of the tensors alive during the first ``NUM_STEPS`` steps after the meter was made; a cap holds as long."""

    NUM_STEPS = 2
    origin = "tensors alive"

    def __init__(self, weights: Iterable[torch.Tensor], cap: MemoryCap | None = None) -> None:
        trim()
        self._live = cap or LiveBytes()
        self._live.watch(weights)
        self._num_observed = 0
        self._live.__enter__()  # type: ignore[no-untyped-call]

    def observe(self) -> None:
        """Stops watching when enough steps were seen."""
        self._num_observed += 1
        if self._num_observed == self.NUM_STEPS:
            self._live.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def peak_bytes(self) -> int:
        """The peak so far, weights included."""
        return self._live.peak_bytes


class ResidentMeter:
    """Growth of the resident set since the meter was made, plus the weights that were there before."""

    def __init__(self, weight_bytes: int) -> None:
        trim()
        self._weight_bytes = weight_bytes
        self._resets = _reset_peak()
        self.origin = "VmHWM growth + weights" if self._resets else "resident set sampled after each step + weights"
        self._start_bytes = _resident_bytes()
        self._sampled_bytes = self._start_bytes

    def observe(self) -> None:
        """Takes a sample, where the kernel keeps no peak that can be reset."""
        if not self._resets:
            self._sampled_bytes = max(self._sampled_bytes, _resident_bytes())

    def peak_bytes(self) -> int:
        """The peak so far, weights included."""
        peak_bytes = _status_bytes("VmHWM") if self._resets else self._sampled_bytes
        return self._weight_bytes + max(0, peak_bytes - self._start_bytes)


class AllocatorMeter:
    """What the CUDA caching allocator counted."""

    origin = "CUDA allocator, max_memory_allocated"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        trim()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    def observe(self) -> None:
        """Nothing to do: the allocator keeps the peak."""

    def peak_bytes(self) -> int:
        """The peak so far, weights included."""
        return torch.cuda.max_memory_allocated(self._device)


def meter_for(
    device: torch.device, weights: Iterable[torch.Tensor], *, warmup: int = 0, cap: MemoryCap | None = None
) -> MemoryMeter:
    """A meter for what ``device`` does from now on.

    Args:
        device: what is measured.
        weights: those that already lie on it.
        warmup: steps before those that are timed.
        cap: on what is alive in the two warm-up steps; with fewer nothing is watched.

    Raises:
        OutOfMemoryError: the weights alone are more than the cap.
    """
    if device.type == "cuda":
        return AllocatorMeter(device)
    if warmup >= LiveMeter.NUM_STEPS:
        return LiveMeter(weights, cap)
    return ResidentMeter(storage_bytes(weights))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind ``tensors``, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def available_memory_bytes() -> int:
    """What processes may still take of this machine's memory, or of the container's; 0 if the system does not say."""
    if not _MEMINFO.exists():
        return 0
    available = _kilobytes(_MEMINFO, "MemAvailable")
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def trim() -> None:
    """Collects garbage and gives freed memory back to the system, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc has it, musl has not
            libc.malloc_trim(0)


def _reset_peak() -> bool:
    """Sets VmHWM back to the present resident set (Documentation/filesystems/proc.rst, clear_refs, value 5)."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:  # no /proc, or a sandbox that forbids it: the meter samples instead, and says so
        return False
    return _status_bytes("VmHWM") <= _status_bytes("VmRSS") + 2**20  # some sandboxes accept the write and ignore it


def _resident_bytes() -> int:
    if _STATUS.exists():
        return _status_bytes("VmRSS")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(field: str) -> int:
    return _kilobytes(_STATUS, field)


def _kilobytes(path: Path, field: str) -> int:
    """In bytes, the figure of a line like ``VmRSS:  1024 kB``."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{path} has no {field}")
