"""Which micro-batch counts a plan is sought among."""

from __future__ import annotations

__all__ = ["microbatch_counts", "preferred_count"]

MOST_PER_DEVICE = 8
"""more micro-batches than this per device shorten a step by little: the bubble is (S - 1) / (M + S - 1)"""


def microbatch_counts(batch: int, num_devices: int) -> tuple[int, ...]:
    """Counts worth trying: 1, and the divisors of the batch nearest to 2, 4 and 8 times the number of devices."""
    if num_devices == 1:
        return (1,)
    divisors = [count for count in range(1, batch + 1) if batch % count == 0]
    return tuple(sorted({1} | {_nearest(divisors, num_devices * factor) for factor in (2, 4, MOST_PER_DEVICE)}))


def _nearest(counts: list[int], target: int) -> int:
    """Of two equally near ones the smaller."""
    return min(counts, key=lambda count: (abs(count - target), count))


def preferred_count(batch: int, num_devices: int) -> int:
    """The one count to try when tracing is too slow for several: up to four per device."""
    return max(count for count in range(1, max(1, 4 * num_devices) + 1) if batch % count == 0)
