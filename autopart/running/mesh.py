"""Which process of a run does what: one process per device, its part of its stage's group, and whom it talks to.

The devices of a stage form a grid of ``data_parallel`` rows and ``tensor_parallel`` columns, numbered along the rows,
so that devices which share layers are neighbours.  All stages have as many rows: replica *d* of a stage talks to
replica *d* of the next.  They may differ in columns: values at a boundary are whole on every device of a row, so
column *t* sends to the columns of the next stage that are *t* modulo the stage's own number of them, and gradients come
back in the same way.  A DeviceMesh cannot say that, so the process groups are made one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.schema.plan import Plan, Stage

__all__ = [
    "Mesh",
    "Routes",
    "Seat",
    "check_groups", "check_recomputation",
    "make_mesh",
    "num_replicas",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """The processes that a process exchanges a stage's boundary values with."""

    to_next: tuple[int, ...]
    from_next: int
    """of gradients; -1 for the last stage"""
    to_previous: tuple[int, ...]
    """of gradients"""
    from_previous: int
    """-1 for the first stage"""


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


def num_replicas(plan: Plan) -> int:
    """How many replicas share every micro-batch."""
    return max(stage.data_parallel for stage in plan.stages)


def samples_per_replica(plan: Plan) -> int:
    """Samples of a micro-batch that go through a stage at once, which is the size to trace the model at."""
    return plan.job.batch // plan.schedule.num_microbatches // num_replicas(plan)


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

    def neighbours(other: int) -> list[Seat]:
        if not 0 <= other < len(plan.stages):
            return []
        return [seat for seat in everyone if seat.rank == plan.ranks[other] and seat.data == own.data]

    def source(others: list[Seat]) -> int:
        return next((seat.process for seat in others if seat.tensor == own.tensor % seat.num_tensor), -1)

    def targets(others: list[Seat]) -> tuple[int, ...]:
        return tuple(seat.process for seat in others if seat.tensor % own.num_tensor == own.tensor)

    after, before = neighbours(stage + 1), neighbours(stage - 1)
    return Routes(
        to_next=targets(after), from_next=source(after), to_previous=targets(before), from_previous=source(before)
    )


def make_mesh(plan: Plan, process: int) -> Mesh:
    """The process groups of this process; collective, every process of the default group makes them all."""
    everyone = seats(plan)
    if len(everyone) == len(_groups(plan)):
        return Mesh(pipeline=None, stage=None, data=None, tensor=None)
    own = everyone[process]
    most_tensor = max(seat.num_tensor for seat in everyone)
    columns = {
        (data, tensor): [s.process for s in everyone if s.data == data and s.tensor == tensor % s.num_tensor]
        for data in range(own.num_data) for tensor in range(most_tensor)
    }
    pipelines = {place: dist.new_group(members) for place, members in columns.items()}
    return Mesh(
        pipeline=pipelines[own.data, own.tensor],
        stage=_group_of(process, _gathered((seat.rank, seat) for seat in everyone)),
        data=_group_of(process, _gathered(((seat.rank, seat.tensor), seat) for seat in everyone)),
        tensor=_group_of(process, _gathered(((seat.rank, seat.data), seat) for seat in everyone)),
    )


def check_recomputation(plan: Plan) -> None:
    """Refuses stages that count on recomputation, which would need more memory than planned.

    Raises:
        RunError: there is one.
    """
    found = next((stage for stage in plan.stages if stage.recompute), None)
    if found is not None:
        raise RunError(
            f"stage {found.index} is planned to run its forward again in the backward, which running does not do yet; "
            "plan with --recompute never"
        )


def check_groups(plan: Plan, *, training: bool) -> None:
    """Refuses groups of devices that cannot be run together.

    Raises:
        RunError: the stages differ in replicas, or the schedule gives wrong gradients with replicas, or a stage counts
            on recomputation.
    """
    check_recomputation(plan)
    counts = sorted({stage.data_parallel for stage in plan.stages})
    if len(counts) > 1:
        raise RunError(
            f"the plan has stages of {counts[0]} and of {counts[-1]} replicas, between which samples would have to be "
            f"dealt anew at every boundary; plan with --data-parallel 1, or for devices that stages can share evenly"
        )
    if training and counts[0] > 1 and plan.schedule.name == "zero-bubble":
        raise RunError(
            f"{counts[0]} replicas with the zero-bubble schedule give wrong gradients (torch's DistributedDataParallel "
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
