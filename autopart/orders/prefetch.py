"""Orders with their messages, in which receives are posted before they are needed.

Torch's schedules post a receive right before the computation that needs it, and wait: every message is then exposed.
Posted some computations earlier, it travels while the device computes.  Its room is there anyway: torch's stages have
a buffer for every micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from autopart.orders.actions import Action, Order

__all__ = ["Message", "Step", "with_messages"]

Message = tuple[Literal["recv", "send"], Literal["forward", "backward"], int, int]
"""receive or send, which way, stage, micro-batch"""
Step = Action | Message

_WAYS: dict[str, Literal["forward", "backward"]] = {
    "forward": "forward", "backward": "backward", "input": "backward",
}  # fmt: skip


def with_messages(order: Order, owners: Sequence[int], ahead: int) -> tuple[Step, ...]:
    """A device's order with its messages; between stages of one device there are none.

    Args:
        order: what the device computes.
        owners: the device of every stage of the pipeline.
        ahead: how many computations before it is needed a receive is posted.

    >>> order = (Action("forward", 1, 0), Action("backward", 1, 0), Action("forward", 1, 1))
    >>> with_messages(order, (0, 1), 1)[:2]
    (('recv', 'forward', 1, 0), Action(deed='forward', stage=1, microbatch=0))
    >>> with_messages(order, (0, 1), 1)[2:4]
    (('recv', 'forward', 1, 1), Action(deed='backward', stage=1, microbatch=0))
    """
    needs = [_messages("recv", action, owners) for action in order]
    steps: list[Step] = []
    posted = 0
    for index, action in enumerate(order):
        while posted < len(order) and posted <= index + ahead:
            steps += needs[posted]
            posted += 1
        steps += [action, *_messages("send", action, owners)]
    return tuple(steps)


def _messages(kind: Literal["recv", "send"], action: Action, owners: Sequence[int]) -> list[Message]:
    way = _WAYS.get(action.deed)
    if way is None:  # the weights' half of a backward needs nobody
        return []
    looks_back = (way == "forward") == (kind == "recv")
    other = action.stage - 1 if looks_back else action.stage + 1
    crosses = 0 <= other < len(owners) and owners[other] != owners[action.stage]
    return [(kind, way, action.stage, action.microbatch)] if crosses else []
