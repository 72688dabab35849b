"""A step of a schedule, event by event, as torch.distributed.pipelining runs it.

The order of computing is that of ``orders``.  How messages go depends on the schedule:

* stock ScheduleGPipe / Schedule1F1B: a receive is posted right before the compute that needs it and waited for; sends
  are asynchronous, except where 1F1B waits for the one it posted together with a receive;
* torch's runtime of interleaved and zero-bubble schedules: receives are posted as soon as the sender's turn comes in
  the lowered schedule (``_add_send_recv``) and waited for by the compute; sends are never waited for.

* our own way (``prefetch``): receives are posted so many computations before they are needed, nothing else waits.

A message starts when the sender has it and knows that the other end has posted a receive; that word queues behind what
the receiver is sending itself.  Where receives are posted when they are needed it is never there in time, so that a
link carries one message at a time in either direction; elsewhere one each way.  That is what gloo over a shaped link
was measured to do.

GPipe, two stages, two micro-batches (r: receive)::

    stage 0  F0 F1                r B0 r B1
    stage 1     r F0 r F1 B0 B1

For inference that gives exactly sum of (receive + forward) + (M - 1) * the largest, the flow shop of identical jobs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heappop, heappush

from autopart.orders import orders_of
from autopart.planning.simulating.messages import (
    DEEDS,
    RECEIVE,
    SEND,
    WAIT,
    Program,
    Size,
    one_way_at_a_time,
    programs_of,
)
from autopart.schema.job import ScheduleName
from autopart.schema.plan import Plan
from autopart.schema.timeline import Event, EventKind, Timeline

__all__ = ["StageTimes", "run_schedule", "simulate", "step_seconds", "warmup"]

INPUT_SHARE = 0.5
"""of a backward: the gradients of the inputs take one matrix product, those of the weights another one as large"""

Row = tuple[int, int, int, float, float]
"""stage, what (index into DEEDS, or one of the below), micro-batch, start, end"""

VALUE, GRADIENT, UPDATE = range(len(DEEDS), len(DEEDS) + 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What the simulation needs of a stage; receive and return are of its first boundary."""

    forward_seconds: float
    backward_seconds: float
    receive_seconds: float
    return_seconds: float
    optimizer_seconds: float
    exchanges_with: tuple[int, ...] = ()


def warmup(
    schedule: ScheduleName, num_stages: int, num_microbatches: int, training: bool, ranks: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Forward micro-batches of every stage before its first backward; zeros for inference."""
    owners = ranks or tuple(range(num_stages))
    if not training:
        return (0,) * num_stages
    if schedule == "gpipe":
        return (num_microbatches,) * num_stages
    if schedule == "1f1b" and owners == tuple(range(num_stages)):
        return tuple(min(num_microbatches, num_stages - index) for index in range(num_stages))
    found = []
    orders = orders_of(schedule, owners, num_microbatches)
    for stage, rank in enumerate(owners):
        deeds = [action.deed for action in orders[rank] if action.stage == stage]
        found.append(next(index for index, deed in enumerate(deeds) if deed != "forward"))
    return tuple(found)


@dataclass(slots=True)
class _Run:
    """The state of a simulation: clocks of ranks and links, messages sent, posted and arrived (-1: not yet)."""

    size: Size
    programs: tuple[Program, ...]
    seconds: list[float]
    """of every deed of every stage, ``deed * V + stage``"""
    travel: list[float]
    """of a value from every stage, then of a gradient from every stage"""
    clock: list[float]
    counter: list[int]
    sent: list[float]
    posted: list[float]
    arrived: list[float]
    both_ways: bool
    """links carry one message each way at a time, not one in all"""
    link_free: dict[tuple[int, int], float] = field(default_factory=dict)
    streams: dict[tuple[int, int], list[tuple[float, float]]] = field(default_factory=dict)
    """each way of a link that carries both at once: when each of its messages could start, and when it was through"""
    ready: list[tuple[float, float, int]] = field(default_factory=list)
    """heap of messages that both ends have posted, by the earliest start known for them"""
    rows: list[Row] | None = None
    """None: not wanted"""

    def advance(self, rank: int) -> None:
        """Follow a rank's program until it has to wait for a message or is through."""
        program, now, at = self.programs[rank], self.clock[rank], self.counter[rank]
        num, num_stages = self.size.num_microbatches, self.size.num_stages
        while at < len(program):
            act, argument = program[at]
            if act < SEND:
                stage = argument // num
                start, now = now, now + self.seconds[act * num_stages + stage]
                if self.rows is not None:
                    self.rows.append((stage, act, argument % num, start, now))
            elif act == SEND:
                self.sent[argument] = now
                self.match(argument)
            else:
                if act != WAIT and self.posted[argument] < 0:
                    self.posted[argument] = now
                    self.match(argument)
                if act in (RECEIVE, WAIT):
                    if self.arrived[argument] < 0:
                        break
                    now = max(now, self.arrived[argument])
            at += 1
        self.clock[rank], self.counter[rank] = now, at

    def match(self, message: int) -> None:
        """Make a message ready once both ends have posted it."""
        sent, posted = self.sent[message], self.posted[message]
        if sent >= 0 and posted >= 0:
            heappush(self.ready, (max(sent, posted), sent, message))

    def deliver(self) -> tuple[int, ...]:
        """Carry the message that can start first; the ranks at its ends, () if there is none."""
        num, num_stages = self.size.num_microbatches, self.size.num_stages
        while self.ready:
            start, sent, message = heappop(self.ready)
            gradient, sender = divmod(message // num, num_stages)
            target = sender - 1 if gradient else sender + 1
            one, other = self.size.owners[sender], self.size.owners[target]
            link = (one, other) if one < other or self.both_ways else (other, one)
            free = max(self.link_free.get(link, 0.0), self.told(other, one, self.posted[message]))
            if free > start:
                heappush(self.ready, (free, sent, message))
                continue
            end = start + self.travel[message // num]
            self.arrived[message] = self.link_free[link] = end
            if self.both_ways:
                self.streams.setdefault(link, []).append((max(sent, self.posted[message]), end))
            if self.rows is not None:
                self.rows.append((target, GRADIENT if gradient else VALUE, message % num, start, end))
            return (one, other)
        return ()

    def told(self, receiver: int, sender: int, posted: float) -> float:
        """When the sender hears that a receive was posted: once what the receiver was sending it is through."""
        stream = self.streams.get((receiver, sender), ())
        return max((end for ready, end in stream if ready <= posted), default=posted)

    def finish(self) -> None:
        """Run to the end."""
        awake: tuple[int, ...] = tuple(range(self.size.num_ranks))
        while awake:
            for rank in awake:
                self.advance(rank)
            awake = self.deliver()
        through = all(at == len(program) for at, program in zip(self.counter, self.programs, strict=True))
        assert through, "the schedule deadlocks"


def _simulate(times: tuple[StageTimes, ...], schedule: ScheduleName, size: Size, *, record: bool) -> _Run:
    num_stages, num_messages = len(times), 2 * len(times) * size.num_microbatches
    halves = [INPUT_SHARE if index else 0.0 for index in range(num_stages)]  # torch: the first stage has no input half
    run = _Run(
        size=size,
        programs=programs_of(schedule, size),
        seconds=[
            *(t.forward_seconds for t in times), *(t.backward_seconds for t in times),
            *(t.backward_seconds * half for t, half in zip(times, halves, strict=True)),
            *(t.backward_seconds * (1 - half) for t, half in zip(times, halves, strict=True)),
        ],
        travel=[*(t.receive_seconds for t in times[1:]), 0.0, *(t.return_seconds for t in times)],
        clock=[0.0] * size.num_ranks, counter=[0] * size.num_ranks,
        sent=[-1.0] * num_messages, posted=[-1.0] * num_messages, arrived=[-1.0] * num_messages,
        both_ways=not one_way_at_a_time(schedule, size),
        rows=[] if record else None,
    )
    run.finish()
    return run


def _updates(run: _Run, times: tuple[StageTimes, ...]) -> list[Row]:
    """The optimizers; stages that share a tied weight wait for one another first."""
    if not run.size.training:
        return []
    owners, through = run.size.owners, list(run.clock)
    rows: list[Row] = []
    for stage, each in enumerate(times):
        rank = owners[stage]
        start = max([run.clock[rank], *(through[owners[other]] for other in each.exchanges_with)])
        run.clock[rank] = start + each.optimizer_seconds
        rows.append((stage, UPDATE, -1, start, run.clock[rank]))
    return rows


def _size(
    times: tuple[StageTimes, ...], num_microbatches: int, training: bool, ranks: tuple[int, ...] | None, prefetch: int
) -> Size:
    owners = ranks or tuple(range(len(times)))
    return Size(owners=owners, num_microbatches=num_microbatches, training=training, prefetch=prefetch)


@lru_cache(maxsize=256)
def step_seconds(
    times: tuple[StageTimes, ...], schedule: ScheduleName, num_microbatches: int, *, training: bool,
    ranks: tuple[int, ...] | None = None, prefetch: int = 0,
) -> float:
    """How long the step that ``run_schedule`` draws takes; quicker, for it keeps no events."""
    run = _simulate(times, schedule, _size(times, num_microbatches, training, ranks, prefetch), record=False)
    computed = max(run.clock)
    return max([computed, *(row[4] for row in _updates(run, times))])


def run_schedule(
    times: tuple[StageTimes, ...], schedule: ScheduleName, num_microbatches: int, *, training: bool,
    ranks: tuple[int, ...] | None = None, prefetch: int = 0,
) -> Timeline:
    """The timeline of one step.

    Args:
        times: of the stages.
        schedule: its name in a plan.
        num_microbatches: of a step.
        training: with backward and optimizer.
        ranks: the device of every stage; None: one stage per device.
        prefetch: how many computations before it is needed a receive is posted; 0: as torch's schedules do.
    """
    run = _simulate(times, schedule, _size(times, num_microbatches, training, ranks, prefetch), record=True)
    assert run.rows is not None, "rows were asked for"
    events = [_event(row) for row in (*run.rows, *_updates(run, times))]
    events.sort(key=lambda event: (event.stage, event.start_seconds, event.end_seconds))
    return Timeline(
        num_stages=len(times), events=tuple(events), step_seconds=max(event.end_seconds for event in events)
    )


KINDS: tuple[EventKind, ...] = ("forward", "backward", "backward", "weight", "receive", "receive", "optimizer")


def _event(row: Row) -> Event:
    stage, what, microbatch, start, end = row
    return Event(
        stage=stage, kind=KINDS[what], microbatch=None if what == UPDATE else microbatch,
        start_seconds=start, end_seconds=end, gradient=what == GRADIENT,
    )


def simulate(plan: Plan) -> Timeline:
    """The timeline of one step of a plan; its ``step_seconds`` is ``plan.prediction.step_seconds``."""
    times = tuple(
        StageTimes(
            forward_seconds=stage.forward_seconds,
            backward_seconds=stage.backward_seconds,
            receive_seconds=sum(t.seconds for t in plan.transfers if t.to_stage == stage.index),
            return_seconds=sum(t.backward_seconds for t in plan.transfers if t.to_stage == stage.index),
            optimizer_seconds=stage.optimizer_seconds,
            exchanges_with=stage.exchanges_with,
        )
        for stage in plan.stages
    )
    return run_schedule(
        times, plan.schedule.name, plan.schedule.num_microbatches, training=plan.job.mode == "train",
        ranks=plan.ranks, prefetch=plan.schedule.prefetch,
    )
