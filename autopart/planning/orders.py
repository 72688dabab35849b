"""What every rank computes and in which order, as torch.distributed.pipelining's schedules have it.

Read off torch/distributed/pipelining/schedules.py (torch 2.13 and 2.14, the same there): ScheduleGPipe, Schedule1F1B,
ScheduleInterleaved1F1B and ScheduleInterleavedZeroBubble, whose ``pipeline_order`` a test compares with, rank by rank.
Of *R* ranks rank *r* owns the virtual stages r, r + R, r + 2 R, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autopart.schema.job import ScheduleName

__all__ = ["ORDERS", "Action", "Deed", "most_in_flight", "num_rounds"]

Deed = Literal["forward", "backward", "input", "weight"]
"""``input`` and ``weight`` are the halves of a backward that zero-bubble parts"""


@dataclass(frozen=True, slots=True)
class Action:
    """One computation of a rank."""

    deed: Deed
    stage: int
    microbatch: int


def _gpipe(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """All forwards, then all backwards."""
    assert num_local == 1, "GPipe has one stage per rank"
    forwards = [Action("forward", rank, m) for m in range(num_microbatches)]
    return forwards + [Action("backward", rank, m) for m in range(num_microbatches)]


def _one_forward_one_backward(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """R - 1 - r forwards ahead, then forward and backward in turn, then the rest (Narayanan et al. 2021, 2.2)."""
    assert num_local == 1, "1F1B has one stage per rank"
    ahead = min(num_ranks - 1 - rank, num_microbatches)
    order = [Action("forward", rank, m) for m in range(ahead)]
    for m in range(num_microbatches):
        if ahead + m < num_microbatches:
            order.append(Action("forward", rank, ahead + m))
        order.append(Action("backward", rank, m))
    return order


def num_rounds(num_ranks: int, num_microbatches: int) -> int:
    """Rounds in which an interleaved schedule takes the micro-batches; it must divide their number."""
    return max(1, num_microbatches // num_ranks)


def _interleaved(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """Depth first over the rank's stages, a round of micro-batches at a time (Narayanan et al. 2021, section 2.2)."""
    return _looped(rank, num_ranks, num_local, num_microbatches, hop=2, part=False)


def _zero_bubble(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """ZB1P (Qi et al. 2024): backward of the weights fills what would be bubble, r steps behind that of the inputs."""
    return _looped(rank, num_ranks, num_local, num_microbatches, hop=1, part=True)


def _looped(
    rank: int, num_ranks: int, num_local: int, num_microbatches: int, *, hop: int, part: bool
) -> list[Action]:
    """Torch's ``_get_1f1b_rank_ops``: warm-up of ``hop`` forwards per rank behind, then in turn, then the rest."""
    round_size = num_microbatches // num_rounds(num_ranks, num_microbatches)
    total = num_local * num_microbatches
    ahead = min((num_local - 1) * round_size + hop * (num_ranks - 1 - rank), total)
    next_microbatch: Counter[tuple[Deed, int]] = Counter()
    order: list[Action] = []

    def append(deed: Deed, local: int) -> None:
        stage = local * num_ranks + rank
        order.append(Action(deed, stage, next_microbatch[deed, stage]))
        next_microbatch[deed, stage] += 1

    def local_of_backward(step: int) -> int:
        return num_local - 1 - (step // round_size) % num_local

    num_weights = 0
    for step in range(total + ahead):
        if step < total:
            append("forward", (step // round_size) % num_local)
        if step >= ahead:
            append("input" if part else "backward", local_of_backward(step - ahead))
            if part and step - ahead >= rank:
                append("weight", local_of_backward(num_weights))
                num_weights += 1
    for number in range(num_weights, total if part else 0):
        append("weight", local_of_backward(number))
    return order


ORDERS: dict[ScheduleName, Callable[[int, int, int, int], list[Action]]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
    "interleaved": _interleaved,
    "zero-bubble": _zero_bubble,
}
"""(rank, number of ranks, stages per rank, micro-batches) to the rank's computations in order"""


def most_in_flight(order: list[Action]) -> dict[int, int]:
    """Most micro-batches whose activations each stage of an order keeps at once, from forward to the last backward."""
    alive: Counter[int] = Counter()
    most: dict[int, int] = {}
    for action in order:
        if action.deed == "forward":
            alive[action.stage] += 1
        most[action.stage] = max(most.get(action.stage, 0), alive[action.stage])
        if action.deed in ("backward", "weight"):
            alive[action.stage] -= 1
    return most
