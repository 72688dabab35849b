"""Topological orders of a placement problem's items."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from autopart.planning.graphs.dagproblem import DagProblem

__all__ = ["ORDERS", "topological_order"]

Key = Callable[[int, int], tuple[float, ...]]
"""called with an item and the turn in which it became ready; of what is ready, the least key goes first"""

ORDERS: tuple[Key, ...] = (
    lambda item, turn: (item,),
    lambda item, turn: (turn, item),
    lambda item, turn: (-turn, item),
    lambda item, turn: (-turn, -item),
)
"""as given, breadth first, depth first, depth first from the other side"""


def topological_order(problem: DagProblem, key: Key) -> list[int]:
    """All items, each after those that precede it; without those on or behind a cycle."""
    after: list[list[int]] = [[] for _ in range(problem.num_items)]
    waiting = [0] * problem.num_items
    for a, b in problem.precedence:
        after[a].append(b)
        waiting[b] += 1
    ready = [(key(item, 0), item) for item in range(problem.num_items) if not waiting[item]]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        _, item = heapq.heappop(ready)
        order.append(item)
        for b in after[item]:
            waiting[b] -= 1
            if not waiting[b]:
                heapq.heappush(ready, (key(b, len(order)), b))
    return order
