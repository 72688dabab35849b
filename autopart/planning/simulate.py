"""A step of a schedule, event by event, as torch.distributed.pipelining runs it.

Each stage follows the instructions of stock ScheduleGPipe / Schedule1F1B (torch/distributed/pipelining/schedules.py):
a receive is posted right before the compute that needs it and waited for; sends are asynchronous, except where 1F1B
waits for the one it posted together with a receive.  A message starts when both ends have posted it, and a link
carries one message at a time, in either direction: that is what gloo over a shaped link was measured to do.

GPipe, two stages, two micro-batches (r: receive)::

    stage 0  F0 F1                r B0 r B1
    stage 1     r F0 r F1 B0 B1

For inference that gives exactly sum of (receive + forward) + (M - 1) * the largest, the flow shop of identical jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from autopart.schema.job import ScheduleName
from autopart.schema.plan import Plan
from autopart.schema.timeline import Event, Timeline

__all__ = ["StageTimes", "run_schedule", "simulate", "warmup"]

Message = tuple[Literal["value", "gradient"], int, int]
"""what, the sending stage, the micro-batch"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What the simulation needs of a stage; receive and return are of its first boundary."""

    forward_seconds: float
    backward_seconds: float
    receive_seconds: float
    return_seconds: float
    optimizer_seconds: float
    exchanges_with: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Instruction:
    """One thing a stage does: post sends, then receive or compute, then wait for sends."""

    act: Literal["send", "receive", "wait", "forward", "backward"]
    microbatch: int
    gradient: bool = False


def _gpipe(index: int, num_stages: int, num_microbatches: int, training: bool) -> list[Instruction]:
    """All forwards, then all backwards; sends are waited for only at the end of each half."""
    program: list[Instruction] = []
    for m in range(num_microbatches):
        program += [Instruction("receive", m), Instruction("forward", m), Instruction("send", m)]
    program += [Instruction("wait", m) for m in range(num_microbatches)] if training else []
    for m in range(num_microbatches if training else 0):
        program += [Instruction("receive", m, True), Instruction("backward", m), Instruction("send", m, True)]
    program += [Instruction("wait", m, True) for m in range(num_microbatches)] if training else []
    return program


def _one_forward_one_backward(
    index: int, num_stages: int, num_microbatches: int, training: bool
) -> list[Instruction]:
    """S - s forwards, then backward and forward in turn, each send fused with the next receive, then the rest."""
    assert training, "1F1B is a training schedule"
    ahead = min(num_microbatches, num_stages - index)
    program: list[Instruction] = []
    for m in range(ahead):
        program += [Instruction("receive", m), Instruction("forward", m)]
        program += [Instruction("wait", m - 1)] if m else []
        program += [Instruction("send", m)] if m < ahead - 1 else []
    for m in range(num_microbatches):
        steady = m + ahead - 1 < num_microbatches
        fused = m + ahead - 1
        program += [Instruction("send", fused)] if steady else []
        program += [Instruction("receive", m, True)]
        program += [Instruction("wait", fused)] if steady else []
        program += [Instruction("backward", m)]
        program += [] if steady else [Instruction("wait", m - 1, True)]
        program += [Instruction("send", m, True)]
        if m + ahead < num_microbatches:
            program += [Instruction("receive", m + ahead), Instruction("wait", m, True)]
            program += [Instruction("forward", m + ahead)]
    return [*program, Instruction("wait", num_microbatches - 1, True)]


PROGRAMS: dict[ScheduleName, Callable[[int, int, int, bool], list[Instruction]]] = {
    "gpipe": _gpipe,
    "1f1b": _one_forward_one_backward,
}


def warmup(schedule: ScheduleName, num_stages: int, num_microbatches: int, training: bool) -> tuple[int, ...]:
    """Forward micro-batches of every stage before its first backward; zeros for inference."""
    if not training:
        return (0,) * num_stages
    if schedule == "gpipe":
        return (num_microbatches,) * num_stages
    return tuple(min(num_microbatches, num_stages - index) for index in range(num_stages))


@dataclass(slots=True)
class _Run:
    """The state of a simulation: clocks of stages and links, messages posted and arrived."""

    times: tuple[StageTimes, ...]
    programs: list[list[Instruction]]
    clock: list[float]
    counter: list[int]
    link_free: list[float]
    ready: list[tuple[float, float, Message]] = field(default_factory=list)
    """heap of messages that both ends have posted, by the earliest start known for them"""
    sent: dict[Message, float] = field(default_factory=dict)
    posted: dict[Message, float] = field(default_factory=dict)
    arrived: dict[Message, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    def target(self, message: Message) -> int:
        """The stage that a message goes to."""
        return message[1] + (1 if message[0] == "value" else -1)

    def exists(self, message: Message) -> bool:
        """Whether there is a stage at both ends."""
        return 0 <= message[1] < len(self.times) and 0 <= self.target(message) < len(self.times)

    def match(self, message: Message) -> None:
        """Make a message ready once both ends have posted it."""
        if message in self.sent and message in self.posted:
            heappush(self.ready, (max(self.sent[message], self.posted[message]), self.sent[message], message))

    def deliver(self) -> tuple[int, ...]:
        """Carry the message that can start first; the stages at its ends, () if there is none."""
        while self.ready:
            start, sent, message = heappop(self.ready)
            target = self.target(message)
            downstream = max(message[1], target)
            if self.link_free[downstream] > start:
                heappush(self.ready, (self.link_free[downstream], sent, message))
                continue
            times = self.times[downstream]
            gradient = message[0] == "gradient"
            end = start + (times.return_seconds if gradient else times.receive_seconds)
            self.arrived[message] = self.link_free[downstream] = end
            self.events.append(
                Event(
                    stage=target, kind="receive", microbatch=message[2],
                    start_seconds=start, end_seconds=end, gradient=gradient,
                )
            )
            return (message[1], target)
        return ()

    def step(self, stage: int) -> bool:
        """Do a stage's next instruction; False if it has to wait for a message or is through."""
        if self.counter[stage] == len(self.programs[stage]):
            return False
        instruction = self.programs[stage][self.counter[stage]]
        if instruction.act in ("forward", "backward"):
            self._compute(stage, instruction)
        elif not self._communicate(stage, instruction):
            return False
        self.counter[stage] += 1
        return True

    def _compute(self, stage: int, instruction: Instruction) -> None:
        times, start = self.times[stage], self.clock[stage]
        forward = instruction.act == "forward"
        self.clock[stage] = start + (times.forward_seconds if forward else times.backward_seconds)
        self.events.append(
            Event(
                stage=stage, kind="forward" if forward else "backward", microbatch=instruction.microbatch,
                start_seconds=start, end_seconds=self.clock[stage],
            )
        )

    def _communicate(self, stage: int, instruction: Instruction) -> bool:
        """Send, receive or wait; False if the message has not arrived yet."""
        kind: Literal["value", "gradient"] = "gradient" if instruction.gradient else "value"
        source = stage
        if instruction.act == "receive":
            source = stage + (1 if instruction.gradient else -1)
        message: Message = (kind, source, instruction.microbatch)
        if not self.exists(message):
            return True
        if instruction.act == "send":
            self.sent[message] = self.clock[stage]
            self.match(message)
            return True
        if instruction.act == "receive" and message not in self.posted:
            self.posted[message] = self.clock[stage]
            self.match(message)
        if message not in self.arrived:
            return False
        self.clock[stage] = max(self.clock[stage], self.arrived[message])
        return True


def run_schedule(
    times: tuple[StageTimes, ...], schedule: ScheduleName, num_microbatches: int, *, training: bool
) -> Timeline:
    """The timeline of one step."""
    num_stages = len(times)
    programs = [PROGRAMS[schedule](index, num_stages, num_microbatches, training) for index in range(num_stages)]
    run = _Run(times, programs, [0.0] * num_stages, [0] * num_stages, [0.0] * num_stages)
    awake: tuple[int, ...] = tuple(range(num_stages))
    while awake:
        for stage in awake:
            while run.step(stage):
                pass
        awake = run.deliver()
    assert all(run.counter[s] == len(programs[s]) for s in range(num_stages)), "the schedule deadlocks"
    if training:
        _update(run)
    events = sorted(run.events, key=lambda event: (event.stage, event.start_seconds, event.end_seconds))
    return Timeline(
        num_stages=num_stages, events=tuple(events), step_seconds=max(event.end_seconds for event in events)
    )


def _update(run: _Run) -> None:
    """The optimizers; stages that share a tied weight wait for one another first."""
    for stage, times in enumerate(run.times):
        start = max(run.clock[other] for other in (stage, *times.exchanges_with))
        run.events.append(
            Event(
                stage=stage, kind="optimizer", microbatch=None,
                start_seconds=start, end_seconds=start + times.optimizer_seconds,
            )
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
        times, plan.schedule.name, plan.schedule.num_microbatches, training=plan.job.mode == "train"
    )
