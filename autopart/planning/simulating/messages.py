"""The programs that ranks follow: the order of computing, with the messages that torch puts around it.

An instruction is a pair of integers.  The argument of a computation is ``stage * M + microbatch``; that of a message is
``sender * M + microbatch`` for a value, and so much plus ``V * M`` for a gradient (V stages, M micro-batches).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from autopart.orders import Action, Deed, Step, orders_of, with_messages
from autopart.schema.job import ScheduleName

__all__ = ["DEEDS", "POST", "RECEIVE", "SEND", "WAIT", "Program", "Size", "one_way_at_a_time", "programs_of"]

Program = tuple[tuple[int, int], ...]

DEEDS: tuple[Deed, ...] = ("forward", "backward", "input", "weight")
SEND, POST, RECEIVE, WAIT = range(4, 8)
"""send: start one, go on; post: be ready for one, go on; receive: post and wait for it; wait: until one sent is gone"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many of everything a schedule has."""

    owners: tuple[int, ...]
    """the rank of every stage"""
    num_microbatches: int
    training: bool
    prefetch: int = 0
    """computations that a receive is posted before it is needed; 0: as torch's schedules do"""

    @property
    def num_stages(self) -> int:
        """Number of virtual stages V."""
        return len(self.owners)

    @property
    def num_ranks(self) -> int:
        """Number of ranks R."""
        return max(self.owners) + 1

    @property
    def is_plain(self) -> bool:
        """Whether every rank has the one stage of its number."""
        return self.owners == tuple(range(len(self.owners)))

    def value(self, act: int, sender: int, microbatch: int) -> list[tuple[int, int]]:
        """An instruction about a value on its way from ``sender`` to the next stage; [] if there is none."""
        exists = 0 <= sender < self.num_stages - 1 and 0 <= microbatch < self.num_microbatches
        return [(act, sender * self.num_microbatches + microbatch)] if exists else []

    def gradient(self, act: int, sender: int, microbatch: int) -> list[tuple[int, int]]:
        """An instruction about a gradient on its way from ``sender`` to the stage before; [] if there is none."""
        exists = 0 < sender < self.num_stages and 0 <= microbatch < self.num_microbatches
        return [(act, (self.num_stages + sender) * self.num_microbatches + microbatch)] if exists else []

    def compute(self, deed: Deed, stage: int, microbatch: int) -> list[tuple[int, int]]:
        """An instruction to compute."""
        return [(DEEDS.index(deed), stage * self.num_microbatches + microbatch)]


def _gpipe(size: Size) -> list[list[tuple[int, int]]]:
    """All forwards, then all backwards; sends are waited for only at the end of each half."""
    programs = []
    for s in range(size.num_stages):
        program: list[tuple[int, int]] = []
        each = range(size.num_microbatches)
        for m in each:
            program += size.value(RECEIVE, s - 1, m) + size.compute("forward", s, m) + size.value(SEND, s, m)
        for m in each if size.training else ():
            program += size.value(WAIT, s, m)
        for m in each if size.training else ():
            program += size.gradient(RECEIVE, s + 1, m) + size.compute("backward", s, m) + size.gradient(SEND, s, m)
        for m in each if size.training else ():
            program += size.gradient(WAIT, s, m)
        programs.append(program)
    return programs


def _one_forward_one_backward(size: Size) -> list[list[tuple[int, int]]]:
    """Each send fused with the next receive."""
    assert size.training, "1F1B is a training schedule"
    return [_fused(size, s) for s in range(size.num_stages)]


def _fused(size: Size, s: int) -> list[tuple[int, int]]:
    num = size.num_microbatches
    ahead = min(num, size.num_stages - s)
    program: list[tuple[int, int]] = []
    for m in range(ahead):
        program += size.value(RECEIVE, s - 1, m) + size.compute("forward", s, m) + size.value(WAIT, s, m - 1)
        program += size.value(SEND, s, m) if m < ahead - 1 else []
    for m in range(num):
        fused = m + ahead - 1
        steady = fused < num
        program += size.value(SEND, s, fused) if steady else []
        program += size.gradient(RECEIVE, s + 1, m)
        program += size.value(WAIT, s, fused) if steady else []
        program += size.compute("backward", s, m)
        program += [] if steady else size.gradient(WAIT, s, m - 1)
        program += size.gradient(SEND, s, m)
        if m + ahead < num:
            program += size.value(RECEIVE, s - 1, m + ahead) + size.gradient(WAIT, s, m)
            program += size.compute("forward", s, m + ahead)
    return program + size.gradient(WAIT, s, num - 1)


def _lowered(schedule: ScheduleName, size: Size) -> list[list[tuple[int, int]]]:
    """Torch's runtime: its ``_add_send_recv`` posts a receive where it schedules the send.

    Inference has GPipe's forwards and no backward.
    """
    orders = orders_of(schedule if size.training else "gpipe", size.owners, size.num_microbatches)
    left = [[a for a in reversed(order) if size.training or a.deed == "forward"] for order in orders]
    programs: list[list[tuple[int, int]]] = [[] for _ in left]
    done: set[tuple[bool, int, int]] = set()
    while any(left):
        before = len(done)
        for rank, actions in enumerate(left):
            if actions and _is_ready(size, actions[-1], done):
                _lower(size, actions.pop(), programs, rank, done)
        assert len(done) > before or not any(left), "the schedule cannot be lowered"
    return programs


def _is_ready(size: Size, action: Action, done: set[tuple[bool, int, int]]) -> bool:
    """Whether the message that an action needs has been scheduled to be sent."""
    if action.deed == "weight":
        return True
    forward = action.deed == "forward"
    needs = action.stage - 1 if forward else action.stage + 1
    return not 0 <= needs < size.num_stages or (forward, needs, action.microbatch) in done


def _lower(
    size: Size, action: Action, programs: list[list[tuple[int, int]]], rank: int, done: set[tuple[bool, int, int]]
) -> None:
    stage, m = action.stage, action.microbatch
    forward = action.deed == "forward"
    message = size.value if forward else size.gradient
    other = stage + (1 if forward else -1)
    before = stage - (1 if forward else -1)
    if action.deed != "weight" and 0 <= before < size.num_stages and size.owners[before] != rank:
        programs[rank] += message(RECEIVE, before, m)
    programs[rank] += size.compute(action.deed, stage, m)
    if action.deed != "weight" and 0 <= other < size.num_stages and size.owners[other] != rank:
        programs[rank] += message(SEND, stage, m)
        programs[size.owners[other]] += message(POST, stage, m)
    done.add((forward, stage, m) if action.deed != "weight" else (forward, -1 - stage, m))


def _early(schedule: ScheduleName, size: Size) -> list[list[tuple[int, int]]]:
    """The order with receives posted early, which nothing but the computation that needs one waits for."""
    orders = orders_of(schedule, size.owners, size.num_microbatches)
    return [
        [pair for step in with_messages(order, size.owners, size.prefetch) for pair in _drawn(size, step)]
        for order in orders
    ]


def _drawn(size: Size, step: Step) -> list[tuple[int, int]]:
    if isinstance(step, Action):
        stage, m = step.stage, step.microbatch
        if step.deed == "forward":
            waits = size.value(RECEIVE, stage - 1, m) if _crosses(size, stage - 1) else []
            return waits + size.compute("forward", stage, m)
        waits = size.gradient(RECEIVE, stage + 1, m) if step.deed != "weight" and _crosses(size, stage) else []
        return waits + size.compute(step.deed, stage, m) if size.training else []
    kind, way, stage, m = step
    if way == "forward":
        return size.value(SEND, stage, m) if kind == "send" else size.value(POST, stage - 1, m)
    if not size.training:
        return []
    return size.gradient(SEND, stage, m) if kind == "send" else size.gradient(POST, stage + 1, m)


def _crosses(size: Size, cut: int) -> bool:
    """Whether something is sent after a stage."""
    return 0 <= cut < size.num_stages - 1 and size.owners[cut] != size.owners[cut + 1]


STOCK: dict[ScheduleName, Callable[[Size], list[list[tuple[int, int]]]]] = {
    "gpipe": _gpipe, "1f1b": _one_forward_one_backward,
}
"""torch's schedules of one stage per rank, which have their own way to send; all others go through its runtime"""


def one_way_at_a_time(schedule: ScheduleName, size: Size) -> bool:
    """Whether a receive is posted when nothing else is left to do, as in torch's schedules of one stage per rank."""
    return not size.prefetch and size.is_plain and (schedule in STOCK or not size.training)


@lru_cache(maxsize=32)
def programs_of(schedule: ScheduleName, size: Size) -> tuple[Program, ...]:
    """The program of every rank; inference has one order of micro-batches, whatever the schedule's name."""
    name: ScheduleName = schedule if size.training else "gpipe"
    if size.prefetch:
        programs = _early(name, size)
    else:
        programs = STOCK[name](size) if one_way_at_a_time(name, size) else _lowered(name, size)
    return tuple(tuple(program) for program in programs)
