"""Orders for placements that torch has no schedule for: stages anywhere, unequal numbers of them per rank.

List scheduling (Graham 1966): whenever a rank is free it takes, of what could start earliest, what its schedule wants
first.  A forward takes one unit of time, a backward two, half a backward one, a message none.  An order so made is that
of a run, so it cannot deadlock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from autopart.orders.actions import Action, Deed, Order
from autopart.schema.job import ScheduleName

__all__ = ["list_orders"]

UNITS: dict[Deed, int] = {"forward": 1, "backward": 2, "input": 1, "weight": 1}
FORWARDS_FIRST: frozenset[ScheduleName] = frozenset({"gpipe", "looped-bfs"})


@dataclass(slots=True)
class _Drawing:
    schedule: ScheduleName
    owners: tuple[int, ...]
    num_microbatches: int
    num_done: Counter[tuple[Deed, int]] = field(default_factory=Counter)
    ends: dict[tuple[Deed, int, int], int] = field(default_factory=dict)
    free: Counter[int] = field(default_factory=Counter)

    @property
    def back(self) -> Deed:
        """What sends the gradient on."""
        return "input" if self.schedule == "zero-bubble" else "backward"

    @property
    def deeds(self) -> tuple[Deed, ...]:
        """In the order in which they are wanted."""
        if self.schedule in FORWARDS_FIRST:
            return ("forward", "backward")
        return (self.back, "forward", "weight") if self.back == "input" else (self.back, "forward")

    def may(self, deed: Deed, stage: int) -> bool:
        """Whether the schedule lets a rank take the next micro-batch of a deed, its inputs aside."""
        number = self.num_done[deed, stage]
        if number == self.num_microbatches:
            return False
        if self.schedule in FORWARDS_FIRST:
            mine = [other for other, owner in enumerate(self.owners) if owner == self.owners[stage]]
            return deed == "forward" or all(self.num_done["forward", s] == self.num_microbatches for s in mine)
        last: Deed = "weight" if self.back == "input" else "backward"
        in_flight = self.num_done["forward", stage] - self.num_done[last, stage]
        return deed != "forward" or in_flight < len(self.owners) - stage

    def needs(self, deed: Deed, stage: int, number: int) -> list[tuple[Deed, int, int]]:
        """What has to be over before."""
        if deed == "forward":
            return [("forward", stage - 1, number)] if stage else []
        if deed == "weight":
            return [("input", stage, number)]
        after = [(self.back, stage + 1, number)] if stage + 1 < len(self.owners) else []
        return [("forward", stage, number), *after]

    def next_action(self) -> Action:
        """The action that can start first, of those the one that its rank wants most."""
        best: tuple[tuple[int, int, int, int], Action] | None = None
        for stage, rank in enumerate(self.owners):
            for wish, deed in enumerate(self.deeds):
                number = self.num_done[deed, stage]
                needs = self.needs(deed, stage, number)
                if self.may(deed, stage) and all(need in self.ends for need in needs):
                    start = max([self.free[rank], *(self.ends[need] for need in needs)])
                    nearest = stage if deed == "forward" and self.schedule in FORWARDS_FIRST else -stage
                    key = (start, rank, wish, nearest)
                    if best is None or key < best[0]:
                        best = key, Action(deed, stage, number)
        assert best is not None, "some micro-batch can always go on"
        return best[1]

    def take(self, action: Action) -> None:
        """Computes it."""
        rank = self.owners[action.stage]
        needs = self.needs(action.deed, action.stage, action.microbatch)
        start = max([self.free[rank], *(self.ends[need] for need in needs)])
        end = start + UNITS[action.deed]
        self.ends[action.deed, action.stage, action.microbatch] = self.free[rank] = end
        self.num_done[action.deed, action.stage] += 1


def list_orders(schedule: ScheduleName, owners: tuple[int, ...], num_microbatches: int) -> tuple[Order, ...]:
    """The order of every rank; a stage keeps at most as many micro-batches as there are stages from it to the end.

    GPipe and looped BFS: all forwards, earlier stages first, then all backwards, later stages first.  The others:
    backward before forward, deeper stages first; zero-bubble leaves the weights' half for when nothing else is there.
    """
    drawing = _Drawing(schedule=schedule, owners=owners, num_microbatches=num_microbatches)
    orders: list[list[Action]] = [[] for _ in range(max(owners) + 1)]
    for _ in range(len(owners) * num_microbatches * len(drawing.deeds)):
        action = drawing.next_action()
        drawing.take(action)
        orders[owners[action.stage]].append(action)
    return tuple(tuple(order) for order in orders)
