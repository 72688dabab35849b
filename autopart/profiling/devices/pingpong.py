"""How long messages take between two devices: samples over sizes, and the line through them.

``python -m autopart.profiling.devices.pingpong RANK FILE`` is one of the two processes that play over gloo;
both meet in FILE, and rank 0 prints its samples as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import distributed

__all__ = ["NUM_REPEATS", "SIZES_BYTES", "Sample", "fit", "time_copies", "time_round_trips"]

SIZES_BYTES = tuple(4**exponent for exponent in range(5, 13))
"""1 KiB to 16 MiB."""

NUM_REPEATS = 30
NUM_WARM_UP = 5

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The median time of one message, one way."""

    num_bytes: int
    seconds: float


def fit(samples: Sequence[Sample]) -> tuple[float, float]:
    """Latency in seconds and bandwidth in bytes per second of ``seconds = latency + bytes / bandwidth``.

    Least squares of the *relative* error, so that small messages count as much as large ones.  A negative latency
    becomes zero, and the bandwidth is fitted anew.

    Raises:
        ValueError: larger messages are not slower, so there is no bandwidth to be seen.
    """
    # minimise sum (l·w + s·x - 1)² with w = 1/seconds, x = bytes/seconds: the normal equations of two unknowns
    rows = [(1 / sample.seconds, sample.num_bytes / sample.seconds) for sample in samples]
    ww, wx, xx = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    sum_w, sum_x = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = ww * xx - wx * wx
    latency = (sum_w * xx - sum_x * wx) / determinant if determinant > 0 else 0.0
    slope = (sum_x - wx * max(latency, 0.0)) / xx
    if not slope > 0:
        raise ValueError(f"messages of {samples[-1].num_bytes} bytes take no longer than those of few bytes")
    return max(latency, 0.0), 1 / slope


def time_round_trips(exchange: Callable[[int], None], clock: Clock, sizes: Sequence[int] = SIZES_BYTES) -> list[Sample]:
    """Samples of one way, each half of the median round trip that ``exchange(num_bytes)`` makes."""
    return [Sample(num_bytes=size, seconds=_median_seconds(exchange, size, clock) / 2) for size in sizes]


def time_copies(
    source: torch.device, target: torch.device, clock: Clock, sizes: Sequence[int] = SIZES_BYTES
) -> list[Sample]:
    """Samples of copying a tensor from one device of this process to another, waiting for the copy included."""
    return [Sample(num_bytes=size, seconds=_copy_seconds(source, target, size, clock)) for size in sizes]


def _copy_seconds(source: torch.device, target: torch.device, num_bytes: int, clock: Clock) -> float:
    sent = torch.ones(num_bytes, dtype=torch.uint8, device=source)
    received = torch.empty(num_bytes, dtype=torch.uint8, device=target)

    def copy(_: int) -> None:
        received.copy_(sent)
        for device in (source, target):
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return _median_seconds(copy, num_bytes, clock)


def _median_seconds(act: Callable[[int], None], num_bytes: int, clock: Clock) -> float:
    for _ in range(NUM_WARM_UP):
        act(num_bytes)
    times = []
    for _ in range(NUM_REPEATS):
        start = clock()
        act(num_bytes)
        times.append(clock() - start)
    return statistics.median(times)


def _exchange(rank: int) -> Callable[[int], None]:
    """One round trip, seen from either end."""
    tensors = {size: torch.zeros(size, dtype=torch.uint8) for size in SIZES_BYTES}

    def serve(num_bytes: int) -> None:
        distributed.send(tensors[num_bytes], 1)
        distributed.recv(tensors[num_bytes], 1)

    def give_back(num_bytes: int) -> None:
        distributed.recv(tensors[num_bytes], 0)
        distributed.send(tensors[num_bytes], 0)

    return (serve, give_back)[rank]


def main(rank: int, file: str, clock: Clock) -> None:
    """Plays one side; rank 0 prints [[bytes, seconds], ...]."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    samples = time_round_trips(_exchange(rank), clock)
    distributed.barrier()
    distributed.destroy_process_group()
    if rank == 0:
        print(json.dumps([[sample.num_bytes, sample.seconds] for sample in samples]))


if __name__ == "__main__":
    import time

    main(int(sys.argv[1]), sys.argv[2], time.perf_counter)
