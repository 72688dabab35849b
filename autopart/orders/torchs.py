"""What every rank computes and in which order, as torch.distributed.pipelining's schedules have it.

Read off torch/distributed/pipelining/schedules.py (torch 2.13 and 2.14, the same there): ScheduleGPipe, Schedule1F1B,
ScheduleLoopedBFS, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble and ScheduleZBVZeroBubble, whose
``pipeline_order`` a test compares with, rank by rank.  Of *R* ranks rank *r* owns the stages r, r + R, r + 2 R, ...;
in ZBV r and 2 R - 1 - r.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from autopart.orders.actions import Action, Deed
from autopart.schema.job import ScheduleName

__all__ = ["ORDERS", "num_rounds", "zbv"]


def _gpipe(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """All forwards, then all backwards."""
    assert num_local == 1, "torch's GPipe has one stage per rank"
    forwards = [Action("forward", rank, m) for m in range(num_microbatches)]
    return forwards + [Action("backward", rank, m) for m in range(num_microbatches)]


def _one_forward_one_backward(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """R - 1 - r forwards ahead, then forward and backward in turn, then the rest (Narayanan et al. 2021, 2.2)."""
    assert num_local == 1, "torch's 1F1B has one stage per rank"
    ahead = min(num_ranks - 1 - rank, num_microbatches)
    order = [Action("forward", rank, m) for m in range(ahead)]
    for m in range(num_microbatches):
        if ahead + m < num_microbatches:
            order.append(Action("forward", rank, ahead + m))
        order.append(Action("backward", rank, m))
    return order


def _looped_bfs(rank: int, num_ranks: int, num_local: int, num_microbatches: int) -> list[Action]:
    """All micro-batches through one stage, then through the rank's next (Lamy-Poirier 2023); backward in reverse."""
    stages = range(rank, num_ranks * num_local, num_ranks)
    each = range(num_microbatches)
    forwards = [Action("forward", stage, m) for stage in stages for m in each]
    return forwards + [Action("backward", stage, m) for stage in reversed(stages) for m in reversed(each)]


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
    "looped-bfs": _looped_bfs,
    "interleaved": _interleaved,
    "zero-bubble": _zero_bubble,
}
"""(rank, number of ranks, stages per rank, micro-batches) to the rank's computations in order"""


def zbv(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    """ZB-V (Qi et al. 2024, section 6): two stages per rank in the shape of a V, as far down as it is far up.

    Torch draws it for at least 2 R - 1 micro-batches and strikes out those that are not there.
    """
    down, up = rank, 2 * num_ranks - 1 - rank
    num_drawn = max(2 * num_ranks - 1, num_microbatches)
    drawn: Counter[tuple[Deed, int]] = Counter()
    order: list[Action] = []

    def append(stage: int, *deeds: Deed) -> None:
        for deed in deeds:
            order.append(Action(deed, stage, drawn[deed, stage]))
            drawn[deed, stage] += 1

    for _ in range(2 * (num_ranks - rank) - 1):
        append(down, "forward")
    for _ in range(rank):
        append(up, "forward")
        append(down, "forward")
    for _ in range(num_ranks - rank):
        append(up, "forward", "input", "weight")
    while drawn["forward", up] < drawn["forward", down] or drawn["forward", down] < num_drawn:
        if drawn["forward", down] < num_drawn:
            append(down, "forward")
        append(down, "input", "weight")
        append(up, "forward", "input", "weight")
    for _ in range(rank):
        append(down, "input")
        append(up, "input")
    for _ in range(num_ranks - rank):
        append(down, "input", "weight")
    for stage in (up, down):
        while drawn["weight", stage] < drawn["input", stage]:
            append(stage, "weight")
    return [action for action in order if action.microbatch < num_microbatches]
