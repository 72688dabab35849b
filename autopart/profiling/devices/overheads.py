"""What of a device's memory no tensor gets: context, the allocator's segments and gaps, and the user's reserve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from autopart.errors import UsageError
from autopart.profiling.devices.catalogue import read_shipped
from autopart.profiling.devices.rows import FigureRow, Row
from autopart.schema.device import Device, Overhead
from autopart.units import format_bytes, parse_bytes

__all__ = ["overhead_of", "with_reserve"]

NONE = ("CPU", "Apple")
"""vendors of devices without a context of their own"""


class _OverheadRow(Row):
    vendor: str
    context: FigureRow
    segments: FigureRow
    fragmentation: FigureRow


class _OverheadFile(Row):
    sources: Mapping[str, str]
    overheads: tuple[_OverheadRow, ...]


@cache
def overhead_of(vendor: str) -> Overhead:
    """What the devices of a vendor need besides tensors, from profiles/memory.yaml."""
    if vendor in NONE:
        return Overhead()
    rows = {row.vendor: row for row in _OverheadFile.model_validate(read_shipped("memory.yaml")).overheads}
    row = rows.get(vendor, rows["other"])
    return Overhead(
        context_bytes=parse_bytes(row.context.value), segment_bytes=parse_bytes(row.segments.value),
        fragmentation_permille=round(1000 * float(row.fragmentation.value)),
    )


def with_reserve(device: Device, reserve_bytes: int) -> Device:
    """The device with so much of its memory left to others.

    Raises:
        UsageError: nothing would be left to plan with.
    """
    if reserve_bytes >= device.memory_bytes:
        raise UsageError(
            f"a reserve of {format_bytes(reserve_bytes)} leaves nothing of the {format_bytes(device.memory_bytes)} of "
            f"{device.name} ({device.memory_origin}); give less"
        )
    overhead = replace(device.overhead, reserve_bytes=device.overhead.reserve_bytes + reserve_bytes)
    return replace(
        device, memory_bytes=device.memory_bytes - reserve_bytes, overhead=overhead,
        memory_origin=f"{device.memory_origin}, less {format_bytes(reserve_bytes)} left to others",
    )
