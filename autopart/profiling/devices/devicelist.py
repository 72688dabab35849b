"""The devices that a list names: ``cuda:0,cpu:1@0.5,2xh100-sxm-80gb``."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from autopart.errors import DeviceError
from autopart.profiling.devices.catalogue import kind
from autopart.profiling.devices.here import (
    LOCAL_NODE,
    PHYSICAL_MEMORY,
    cpu_core,
    cpu_device,
    cuda_device,
    devices_here,
)
from autopart.profiling.devices.overheads import overhead_of
from autopart.schema.device import Device, Kind
from autopart.units import format_bytes

__all__ = ["MAX_NUM_DEVICES", "absent_device", "read_devices", "share_memory"]

MAX_NUM_DEVICES = 1024
"""More than this is taken for a slip of the finger."""

UNIFIED_MEMORY_SHARE = 0.7
"""What an Apple GPU may use of the memory it shares with the processor (source: devices.yaml)."""

_COUNTED = re.compile(r"(\d{1,9})\s*[x*]\s*(.+)", re.IGNORECASE)


def read_devices(text: str | Sequence[str], own: Sequence[Kind] = ()) -> tuple[Device, ...]:
    """The devices of a comma list (or of several).

    Each word is ``auto`` (all CUDA devices here, else the processor), ``cuda:1``, ``cpu`` (one process, all threads),
    ``cpu:1`` (emulated: a process with one thread) or ``cpu:1@0.5`` (at half speed), or a kind of the catalogue with
    an optional count, ``4xt4``.  Kinds of the user's ``own`` are found before those of the catalogue.

    >>> [device.name for device in read_devices("2xt4,l4")]
    ['t4:0', 't4:1', 'l4:0']

    Raises:
        DeviceError: a word names no device, or a device is named twice.
    """
    lists = (text,) if isinstance(text, str) else tuple(text)
    words = [word.strip() for part in lists for word in part.split(",")]
    if not words or not all(words):
        raise DeviceError(f"the device list {', '.join(lists)!r} has an empty place; write for example cuda:0,cuda:1")
    devices = _number(device for word in words for device in _read_word(word, own))
    _check(devices)
    return share_memory(devices)


def share_memory(devices: Sequence[Device]) -> tuple[Device, ...]:
    """The same devices, those on the processor with an equal share of its memory (unless they have a cap)."""
    num_sharing = sum(device.backend == "cpu" for device in devices)

    def shared(device: Device) -> Device:
        if device.memory_origin != PHYSICAL_MEMORY or num_sharing < 2:
            return device
        origin = f"{PHYSICAL_MEMORY} {format_bytes(device.memory_bytes)} shared by {num_sharing} devices"
        return dataclasses.replace(device, memory_bytes=device.memory_bytes // num_sharing, memory_origin=origin)

    return tuple(map(shared, devices))


def absent_device(kind: Kind, *, name: str, node: str = LOCAL_NODE) -> Device:
    """A device of a catalogue kind that is not here: it can be planned for only."""
    memory_bytes, origin = _usable(kind)
    return Device(
        name=name,
        kind=kind.name,
        node=node,
        memory_bytes=memory_bytes,
        memory_origin=origin,
        backend="absent",
        overhead=overhead_of(kind.vendor),
        rent_usd_per_hour=kind.rent_usd_per_hour.value if kind.rent_usd_per_hour else None,
    )


def _usable(kind: Kind) -> tuple[int, str]:
    size_bytes = round(kind.memory_bytes.value)
    if kind.vendor == "CPU":
        return size_bytes, "data sheet"
    if kind.vendor == "Apple":
        return round(UNIFIED_MEMORY_SHARE * size_bytes), f"{UNIFIED_MEMORY_SHARE:.0%} of the unified memory"
    context_bytes = overhead_of(kind.vendor).context_bytes
    reserve = format_bytes(context_bytes)
    if size_bytes <= context_bytes:
        raise DeviceError(
            f"{kind.name} has {format_bytes(size_bytes)}, no more than the driver's context takes ({reserve}); "
            "give the memory of the whole card"
        )
    return size_bytes - context_bytes, f"data sheet less {reserve} for the driver's context"


def _read_word(word: str, own: Sequence[Kind]) -> tuple[Device, ...]:
    """The devices of one word; absent ones are not numbered yet."""
    for pattern, read in _FORMS:
        if match := re.fullmatch(pattern, word, re.IGNORECASE):
            return read(match)
    match = _COUNTED.fullmatch(word)
    count, name = (int(match[1]), match[2]) if match else (1, word)
    if name.casefold().startswith(("cuda", "cpu:")) or name.casefold() == "cpu":
        raise DeviceError(f"{word!r} names no device; write cuda:0,cuda:1 or cpu or cpu:0,cpu:1@0.5 or auto")
    if not 1 <= count <= MAX_NUM_DEVICES:
        raise DeviceError(f"{word!r} asks for {count} devices; give a count between 1 and {MAX_NUM_DEVICES}")
    return (absent_device(kind(name, own), name=""),) * count


def _read_auto(_: re.Match[str]) -> tuple[Device, ...]:
    here = devices_here()
    return tuple(device for device in here if device.backend == "cuda") or here


def _read_core(match: re.Match[str]) -> tuple[Device, ...]:
    try:
        speed = float(match[2] or 1)
    except ValueError:
        speed = math.nan
    if not 0 < speed <= 1:
        raise DeviceError(f"the speed of {match[0]!r} must lie in (0, 1]; write for example cpu:1@0.5")
    return (cpu_core(int(match[1]), speed=speed),)


_FORMS: tuple[tuple[str, Callable[[re.Match[str]], tuple[Device, ...]]], ...] = (
    ("auto", _read_auto),
    (r"cuda:(\d{1,6})", lambda match: (cuda_device(int(match[1])),)),
    ("cpu", lambda _: (cpu_device(),)),
    (r"cpu:(\d{1,6})(?:@(.*))?", _read_core),
)


def _number(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Absent devices get the names ``kind:0``, ``kind:1`` … in their order."""
    counts: Counter[str] = Counter()
    named = []
    for device in devices:
        if not device.name:
            named.append(dataclasses.replace(device, name=f"{device.kind}:{counts[device.kind]}"))
            counts[device.kind] += 1
        else:
            named.append(device)
    return tuple(named)


def _check(devices: tuple[Device, ...]) -> None:
    if len(devices) > MAX_NUM_DEVICES:
        raise DeviceError(f"the list has {len(devices)} devices; give at most {MAX_NUM_DEVICES}")
    name, num_times = Counter(device.name for device in devices).most_common(1)[0]
    if num_times > 1:
        raise DeviceError(f"{name} is listed {num_times} times; list every device once")
    cores = [device.name for device in devices if device.name.startswith("cpu:")]
    if cores and any(device.name == "cpu" for device in devices):
        raise DeviceError(f"cpu is the whole processor and {cores[0]} a part of it; give either cpu or cpu:0,cpu:1")
