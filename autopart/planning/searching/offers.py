"""Which ways to run a stage are offered: those that fit, and that no way with as few devices makes needless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.memory import MemoryTerms, Rules

__all__ = ["Costs", "most_in_flight", "undominated"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of every stage [a, b] that is run in one way on one group; all but ``once`` of one micro-batch."""

    forward: Floats
    backward: Floats
    compute: Floats
    """both, added up layer by layer"""
    once: Floats
    """optimizer and exchanges, per step"""


def most_in_flight(terms: MemoryTerms, rules: Rules, capacity_bytes: int, num_devices: int) -> Ints:
    """Micro-batches in flight that fit, 0 if not even what the schedule needs at least."""
    num = rules.num_microbatches
    if not (rules.training and rules.schedule == "1f1b"):
        return np.where(terms.total(num) <= capacity_bytes, num_devices, 0)
    room = capacity_bytes - terms.fixed()
    most = np.where(terms.per_microbatch > 0, room // np.maximum(terms.per_microbatch, 1), num_devices)
    most = np.where((room >= 0) & (terms.total(1) <= capacity_bytes), most, 0)
    return np.where(most >= num, num_devices, np.minimum(most, num_devices))


def undominated(costs: list[Costs], most: list[Ints], widths: list[int], least_hidden: Floats) -> list[Bools]:
    """Which stages [a, b] of every way fit, and no way with as few devices is as fast and holds as much.

    What they cost once counts where it is not surely over when the stages before are through.
    """
    order = sorted(range(len(widths)), key=lambda index: widths[index])
    late = [np.maximum(cost.once, least_hidden[:, None]) for cost in costs]
    masks: dict[int, Bools] = {}
    for index in order:
        mask = np.triu(most[index] > 0, k=1)
        for other in masks:
            better = masks[other] & (costs[other].compute <= costs[index].compute) & (most[other] >= most[index])
            better &= (costs[other].forward <= costs[index].forward) & (late[other] <= late[index])
            mask = mask & ~better
        masks[index] = mask
    return [masks[index] for index in range(len(widths))]
