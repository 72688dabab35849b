"""How fast this machine is just now, by a fixed piece of work.

Shared and virtual machines drift: the same code takes a quarter longer a minute later.  Whoever measures notes the pace
beside, so that a prediction can be told from a change of the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

__all__ = ["pace_seconds"]

SHAPE = (256, 768, 3072)
NUM_MATRICES = 4  # 38 MB: more than a core's own cache holds, as a model's weights are
REPEATS = 5


def pace_seconds(device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds that a few float32 matrix products take on the processor now; 0 on other devices, which do not drift so.

    The median of a handful of repeats; about a third of a second in all on one core.
    """
    if device.type != "cpu":
        return 0.0
    rows, inner, columns = SHAPE
    left = torch.ones(rows, inner)
    matrices = [torch.ones(inner, columns) for _ in range(NUM_MATRICES)]
    samples = []
    for _ in range(1 + REPEATS):
        started = clock()
        for matrix in matrices:
            left @ matrix
        samples.append(clock() - started)
    return statistics.median(samples[1:])
