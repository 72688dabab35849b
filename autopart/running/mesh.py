"""Which process of a run does what: one process per device, its part of its stage's group, and whom it talks to.

The devices of a stage form a grid of ``data_parallel`` rows and ``tensor_parallel`` columns, numbered along the rows,
so that devices which share layers are neighbours.  Stages may differ in both.  Values at a boundary are whole on every
device of a row, so column *t* sends to the columns of the next stage that are *t* modulo the stage's own number of
them, and gradients come back in the same way.  A row sends each of its samples to the row of the next stage that has
it, which is the row of its own number where both have as many.  A DeviceMesh cannot say that, so the process groups are
made one by one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.schema.plan import Plan, Stage

__all__ = [
    "Mesh",
    "Peer",
    "Routes",
    "Seat",
    "check_groups",
    "make_mesh",
    "num_replicas",
    "own_process",
    "process_device",
    "process_devices",
    "processes",
    "routes",
    "samples_per_replica",
    "seats",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a process is in the run of a plan."""

    process: int
    """its rank in the default process group"""
    rank: int
    """of its device group, as in ``Plan.ranks``"""
    data: int
    """which replica of its stages"""
    tensor: int
    """which part of its stages' layers"""
    num_data: int
    num_tensor: int

    @property
    def is_first(self) -> bool:
        """Whether the process is the first of its device group."""
        return self.data == self.tensor == 0

    def is_at(self, data: int, tensor: int) -> bool:
        """Whether it is in this row and column, counted round where its group has fewer."""
        return self.data == data % self.num_data and self.tensor == tensor % self.num_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who a process exchanges boundary values with, and which samples of its own share: start .. stop - 1."""

    process: int
    start: int
    stop: int
    carries_rest: bool
    """what is not batched goes this way too: the receiver gets it once"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """The processes that a process exchanges a stage's boundary values with."""

    num_samples: int
    """of a micro-batch, that the process has"""
    to_next: tuple[Peer, ...]
    from_next: tuple[Peer, ...]
    """of gradients"""
    to_previous: tuple[Peer, ...]
    """of gradients"""
    from_previous: tuple[Peer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The process groups of one process; None: of it alone (``pipeline``: the default group)."""

    pipeline: dist.ProcessGroup | None
    """one process of every device group; torch's stages count themselves in it"""
    stage: dist.ProcessGroup | None
    """all processes of its device group"""
    data: dist.ProcessGroup | None
    """those with the same part of the layers"""
    tensor: dist.ProcessGroup | None
    """those with the same samples"""


def process_devices(plan: Plan) -> tuple[str, ...]:
    """The device of every process of a run: those of a group one after the other, groups in the order of ranks."""
    return tuple(dict.fromkeys(name for stage in plan.stages for name in stage.devices))


def processes(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """The processes that run every stage."""
    numbers = {name: number for number, name in enumerate(process_devices(plan))}
    return tuple(tuple(numbers[name] for name in stage.devices) for stage in plan.stages)


def process_device(plan: Plan, process: int) -> torch.device:
    """What the tensors of a process are placed on.

    Raises:
        RunError: the device is not here.
    """
    device = plan.cluster.device(process_devices(plan)[process])
    if device.torch_device is None:
        raise RunError(f"{device.name} is not in this machine, so the plan cannot be run here; plan for --devices auto")
    return torch.device(device.torch_device)


def own_process(plan: Plan) -> int | None:
    """The number of this process under torchrun; None if it is not under torchrun, or has no part in the plan."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    process = int(os.environ["RANK"])
    return process if process < len(process_devices(plan)) else None


def num_replicas(plan: Plan) -> int:
    """How many replicas share every micro-batch."""
    return max(stage.data_parallel for stage in plan.stages)


def samples_per_replica(plan: Plan, process: int | None = None) -> int:
    """Samples of a micro-batch that go through a stage at once, which is the size to trace the model at.

    Args:
        plan: whose stages may differ in replicas.
        process: one whose stages are meant; None: those with the most replicas.
    """
    count = num_replicas(plan) if process is None else seats(plan)[process].num_data
    return plan.job.batch // plan.schedule.num_microbatches // count


def seats(plan: Plan) -> tuple[Seat, ...]:
    """What every process is, by its number."""
    found: list[Seat] = []
    for rank, stage in enumerate(_groups(plan)):
        for number in range(len(stage.devices)):
            data, tensor = divmod(number, stage.tensor_parallel)
            found.append(Seat(
                process=len(found), rank=rank, data=data, tensor=tensor, num_data=stage.data_parallel,
                num_tensor=stage.tensor_parallel,
            ))  # fmt: skip
    return tuple(found)


def routes(plan: Plan, process: int, stage: int) -> Routes:
    """Whom a process sends the values of one of its stages to, and gets them from."""
    everyone = seats(plan)
    own = everyone[process]

    num_samples = plan.job.batch // plan.schedule.num_microbatches

    def neighbours(other: int) -> list[Seat]:
        if not 0 <= other < len(plan.stages):
            return []
        return [seat for seat in everyone if seat.rank == plan.ranks[other] and _overlap(own, seat, num_samples)]

    def sources(others: list[Seat]) -> tuple[Peer, ...]:
        found = [seat for seat in others if seat.tensor == own.tensor % seat.num_tensor]
        return tuple(_peer(own, seat, num_samples, sender=seat) for seat in found)

    def targets(others: list[Seat]) -> tuple[Peer, ...]:
        found = [seat for seat in others if seat.tensor % own.num_tensor == own.tensor]
        return tuple(_peer(own, seat, num_samples, sender=own) for seat in found)

    after, before = neighbours(stage + 1), neighbours(stage - 1)
    return Routes(
        num_samples=num_samples // own.num_data, to_next=targets(after), from_next=sources(after),
        to_previous=targets(before), from_previous=sources(before),
    )  # fmt: skip


def _share(seat: Seat, num_samples: int) -> range:
    each = num_samples // seat.num_data
    return range(seat.data * each, (seat.data + 1) * each)


def _overlap(one: Seat, other: Seat, num_samples: int) -> range:
    """The samples of a micro-batch that both have."""
    ours, theirs = _share(one, num_samples), _share(other, num_samples)
    return range(max(ours.start, theirs.start), min(ours.stop, theirs.stop))


def _peer(own: Seat, other: Seat, num_samples: int, *, sender: Seat) -> Peer:
    common, begin = _overlap(own, other, num_samples), _share(own, num_samples).start
    receiver = other if sender is own else own
    first = _share(receiver, num_samples).start // (num_samples // sender.num_data)
    return Peer(process=other.process, start=common.start - begin, stop=common.stop - begin,
                carries_rest=sender.data == first)  # fmt: skip


def make_mesh(plan: Plan, process: int) -> Mesh:
    """The process groups of this process; collective, every process of the default group makes them all."""
    everyone = seats(plan)
    if len(everyone) == len(_groups(plan)):
        return Mesh(pipeline=None, stage=None, data=None, tensor=None)
    own = everyone[process]
    most_data, most_tensor = max(seat.num_data for seat in everyone), max(seat.num_tensor for seat in everyone)
    columns = {
        place: [seat.process for seat in everyone if seat.is_at(*place)]
        for place in product(range(most_data), range(most_tensor))
    }
    pipelines = {place: dist.new_group(members) for place, members in columns.items()}
    return Mesh(
        pipeline=pipelines[own.data, own.tensor],
        stage=_group_of(process, _gathered((seat.rank, seat) for seat in everyone)),
        data=_group_of(process, _gathered(((seat.rank, seat.tensor), seat) for seat in everyone)),
        tensor=_group_of(process, _gathered(((seat.rank, seat.data), seat) for seat in everyone)),
    )


def check_groups(plan: Plan, *, training: bool) -> None:
    """Refuses groups of devices that cannot be run together.

    Raises:
        RunError: replicas cannot share a micro-batch's samples evenly, or the schedule gives wrong gradients with them.
    """
    most, num_samples = num_replicas(plan), plan.job.batch // plan.schedule.num_microbatches
    uneven = next((stage for stage in plan.stages if num_samples % stage.data_parallel), None)
    if uneven is not None:
        raise RunError(
            f"the {uneven.data_parallel} replicas of stage {uneven.index} cannot share the {num_samples} samples of a "
            f"micro-batch evenly; plan with another --batch or --microbatches"
        )
    if training and most > 1 and plan.schedule.name == "zero-bubble":
        raise RunError(
            f"{most} replicas with the zero-bubble schedule give wrong gradients (torch's DistributedDataParallel "
            f"misses backward passes in halves); plan with --schedule 1f1b or interleaved, or with --data-parallel 1"
        )


def _groups(plan: Plan) -> tuple[Stage, ...]:
    """The first stage of every device group, in the order of ranks."""
    return tuple(plan.stages[plan.ranks.index(rank)] for rank in range(len(plan.devices_by_rank)))


def _gathered(pairs: Iterable[tuple[object, Seat]]) -> list[list[int]]:
    found: dict[object, list[int]] = {}
    for key, seat in pairs:
        found.setdefault(key, []).append(seat.process)
    return list(found.values())


def _group_of(process: int, members: list[list[int]]) -> dist.ProcessGroup | None:
    """The one of these groups that a process is in; made by all processes, in one order."""
    own = None
    for each in members:
        group = dist.new_group(each) if len(each) > 1 else None
        own = group if process in each else own
    return own
