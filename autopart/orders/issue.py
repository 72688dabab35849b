"""The orders of all ranks as one: what a single thread issues, one action after the other."""

from __future__ import annotations

from collections import deque
from functools import lru_cache

from autopart.orders.actions import Action, Deed, Order

__all__ = ["one_order"]


@lru_cache(maxsize=256)
def one_order(orders: tuple[Order, ...], *, training: bool = True) -> Order:
    """Every rank's actions in its own order, the ranks in turn, each action after those that it needs.

    A thread that issues asynchronous work in this order keeps every device supplied: it deals one action to each in
    turn, and never queues one before those that it waits for.

    Args:
        orders: of the ranks, as ``orders_of`` gives them.
        training: False leaves the backward out.

    >>> from autopart.orders import orders_of
    >>> [f"{each.deed[0]}{each.stage}{each.microbatch}" for each in one_order(orders_of("1f1b", (0, 1), 2))]
    ['f00', 'f10', 'f01', 'b10', 'b00', 'f11', 'b11', 'b01']
    """
    queues = [deque(each for each in order if training or each.deed == "forward") for order in orders]
    num_stages = 1 + max(action.stage for order in orders for action in order)
    done: set[tuple[Deed, int, int]] = set()
    issued: list[Action] = []
    while any(queues):
        before = len(issued)
        for queue in queues:
            if queue and all(need in done for need in _needs(queue[0], num_stages)):
                action = queue.popleft()
                done.add((action.deed, action.stage, action.microbatch))
                issued.append(action)
        assert len(issued) > before, "orders that come from a schedule never wait for each other in a circle"
    return tuple(issued)


def _needs(action: Action, num_stages: int) -> list[tuple[Deed, int, int]]:
    """What has to be issued before an action."""
    stage, number = action.stage, action.microbatch
    if action.deed == "forward":
        return [("forward", stage - 1, number)] if stage else []
    if action.deed == "weight":
        return [("input", stage, number)]
    return [("forward", stage, number), *([(action.deed, stage + 1, number)] if stage + 1 < num_stages else [])]
