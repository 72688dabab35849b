"""How long collectives take within one topology: latency + bytes / bandwidth for each collective and group size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autopart.profiling.calibrating.calibrationdata import read_rows
from autopart.profiling.estimating.leastsquares import Array, fit

__all__ = ["COLLECTIVES", "CollectiveLine", "CollectiveTimes", "collective_times", "fit_line", "ring_seconds"]

COLLECTIVES = "net_sailor_collectives.csv"

MEGABYTE = 2**20

RING_STEPS: Mapping[str, tuple[float, float]] = {
    "all_reduce": (2.0, 2.0),
    "all_gather": (1.0, 1.0),
    "reduce_scatter": (1.0, 1.0),
    "all_to_all": (1.0, 1.0),
}
"""collective → messages each device sends, in units of (n - 1), and their bytes, in units of (n - 1)/n of the whole"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveLine:
    """Time of one collective over a fixed group of devices: latency + bytes / bandwidth."""

    latency_seconds: float
    bytes_per_second: float

    def seconds(self, num_bytes: Array) -> Array:
        """Time of each message size."""
        return np.asarray(self.latency_seconds + num_bytes / self.bytes_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTimes:
    """Measured times of one collective on one kind of device, group size and type."""

    kind: str
    collective: str
    num_devices: int
    dtype: str
    num_bytes: tuple[float, ...]
    seconds: tuple[float, ...]


def ring_seconds(
    collective: str, num_bytes: float, num_devices: int, *, latency_seconds: float, bytes_per_second: float
) -> float:
    """Time of a collective by the ring algorithm, where only the link between neighbours is known.

    An all-reduce of n devices sends 2(n - 1) messages of bytes/n (Patarasuk and Yuan, Bandwidth optimal all-reduce
    algorithms, 2009); the others n - 1.

    Args:
        collective: all_reduce, all_gather, reduce_scatter or all_to_all.
        num_bytes: of the whole tensor.
        num_devices: in the group.
        latency_seconds: of one message between neighbours.
        bytes_per_second: between neighbours, one direction.

    Raises:
        KeyError: the collective has another name.
    """
    if num_devices < 2:
        return 0.0
    messages, share = RING_STEPS[collective]
    others = num_devices - 1
    return messages * others * latency_seconds + share * others / num_devices * num_bytes / bytes_per_second


def collective_times(folder: Path) -> tuple[CollectiveTimes, ...]:
    """The measurements of net_sailor_collectives.csv."""
    groups: dict[tuple[str, str, int, str], list[tuple[float, float]]] = {}
    for row in read_rows(folder, COLLECTIVES):
        key = (row["gpu"].lower(), row["collective"], int(row["world"]), row["dtype"])
        groups.setdefault(key, []).append((float(row["data_MB"]) * MEGABYTE, float(row["time_ms"]) / 1e3))
    return tuple(
        CollectiveTimes(
            kind=kind,
            collective=collective,
            num_devices=num_devices,
            dtype=dtype,
            num_bytes=tuple(size for size, _ in rows),
            seconds=tuple(time for _, time in rows),
        )
        for (kind, collective, num_devices, dtype), rows in sorted(groups.items())
    )


def fit_line(num_bytes: Array, seconds: Array) -> CollectiveLine:
    """The line nearest to the samples, in mean absolute relative error."""
    found = fit(
        lambda c: c["latency_seconds"] + num_bytes / c["bytes_per_second"],
        seconds,
        {"latency_seconds": 50e-6, "bytes_per_second": 20e9},
        prior=1e-3,
    )
    return CollectiveLine(**found)
