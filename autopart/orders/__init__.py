"""The order in which every rank computes under a schedule; planning simulates it, running runs it."""

from __future__ import annotations

from functools import lru_cache

from autopart.orders.actions import Action, Deed, Order, most_in_flight
from autopart.orders.issue import one_order
from autopart.orders.lists import list_orders
from autopart.orders.prefetch import Message, Step, with_messages
from autopart.orders.torchs import ORDERS, num_rounds, zbv
from autopart.schema.job import ScheduleName

__all__ = [
    "ONE_PER_RANK", "ORDERS", "Action", "Deed", "Message", "Order", "Step", "in_flight", "most_in_flight", "num_rounds",
    "one_order", "orders_of", "torch_name", "with_messages",
]  # fmt: skip

ONE_PER_RANK: dict[ScheduleName, str] = {"gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B"}
ROUND_ROBIN: dict[ScheduleName, str] = {
    "looped-bfs": "ScheduleLoopedBFS",
    "interleaved": "ScheduleInterleaved1F1B",
    "zero-bubble": "ScheduleInterleavedZeroBubble",
}
ZBV = "ScheduleZBVZeroBubble"


def torch_name(schedule: ScheduleName, owners: tuple[int, ...], num_microbatches: int) -> str | None:
    """The class of torch.distributed.pipelining that runs this, or None if there is none.

    Args:
        schedule: its name in a plan.
        owners: the rank of every stage.
        num_microbatches: of a step.
    """
    num_ranks = max(owners) + 1
    if owners == tuple(range(num_ranks)) and schedule in ONE_PER_RANK:
        return ONE_PER_RANK[schedule]
    in_rounds = schedule == "looped-bfs" or num_microbatches % num_rounds(num_ranks, num_microbatches) == 0
    is_looped = len(owners) % num_ranks == 0 and owners == tuple(s % num_ranks for s in range(len(owners)))
    if is_looped and in_rounds and schedule in ROUND_ROBIN:
        return ROUND_ROBIN[schedule]
    is_v = owners == (*range(num_ranks), *reversed(range(num_ranks)))
    return ZBV if is_v and schedule == "zero-bubble" else None


@lru_cache(maxsize=256)
def orders_of(schedule: ScheduleName, owners: tuple[int, ...], num_microbatches: int) -> tuple[Order, ...]:
    """What every rank computes in a training step: torch's order where it has one, else one of our own.

    Args:
        schedule: its name in a plan.
        owners: the rank of every stage.
        num_microbatches: of a step.
    """
    name, num_ranks = torch_name(schedule, owners, num_microbatches), max(owners) + 1
    if name is None:
        return list_orders(schedule, owners, num_microbatches)
    if name == ZBV:
        return tuple(tuple(zbv(rank, num_ranks, num_microbatches)) for rank in range(num_ranks))
    num_local = len(owners) // num_ranks
    return tuple(
        tuple(ORDERS[schedule](rank, num_ranks, num_local, num_microbatches)) for rank in range(num_ranks)
    )


def in_flight(schedule: ScheduleName, owners: tuple[int, ...], num_microbatches: int) -> tuple[int, ...]:
    """Per stage, the most micro-batches whose activations it keeps at once in training.

    Zero-bubble keeps what was saved from the forward to the weights' half, and from the inputs' half on the gradients
    of what was saved as well: such a micro-batch counts twice.
    """
    change: dict[Deed, int] = {"forward": 1, "backward": -1, "input": 1, "weight": -2}
    alive, most = [0] * len(owners), [0] * len(owners)
    for order in orders_of(schedule, owners, num_microbatches):
        for action in order:
            alive[action.stage] += change[action.deed]
            most[action.stage] = max(most[action.stage], alive[action.stage])
    return tuple(most)
