"""Why a workload does not fit: which memory is short by how much."""

from __future__ import annotations

import math
from dataclasses import replace

from autopart.planning.graphs.dagplan import contiguous
from autopart.planning.graphs.dagproblem import DagProblem
from autopart.planning.solving.effort import IsOver, never
from autopart.schema.workload import Workload
from autopart.units import format_bytes

__all__ = ["misfit"]


def misfit(workload: Workload, problem: DagProblem, *, proven: bool, out_of_time: IsOver = never) -> str:
    """One line: what is short, by how much, what to do; ``proven`` if it is known that nothing fits."""
    capacity, count = workload.accelerator_bytes, workload.num_accelerators
    accelerator, cpu = (kind.count > 0 for kind in problem.kinds)
    for item, nodes in enumerate(problem.members):
        runs = (accelerator and math.isfinite(problem.times[0][item])) or cpu
        if not runs:
            return f"node {nodes[0]} is not supported on accelerators and there is no CPU; raise maxCPUs to 1"
        if not cpu and problem.sizes[item] > capacity:
            class_of = f"the colour class of node {nodes[0]} ({len(nodes)} nodes)"
            what = f"node {nodes[0]}" if len(nodes) == 1 else class_of
            return (
                f"{what} takes {format_bytes(problem.sizes[item])}, an accelerator has {format_bytes(capacity)}: "
                f"short by {format_bytes(problem.sizes[item] - capacity)}; raise maxSizePerFPGA or allow a CPU"
            )
    total = math.fsum(problem.sizes)
    if total > capacity * count:
        return (
            f"the nodes take {format_bytes(total)}, {count} accelerators of {format_bytes(capacity)} have "
            f"{format_bytes(capacity * count)}: short by {format_bytes(total - capacity * count)}; "
            f"raise maxFPGAs to {math.ceil(total / capacity)} or more, raise maxSizePerFPGA, or allow a CPU"
        )
    if not proven:
        return "no placement that fits was found in time, nor that there is none; raise --time-limit or maxSizePerFPGA"
    needed = _least_capacity(problem, out_of_time)
    shape = "contiguous placement" if problem.precedence else "placement that was found"
    return (
        f"an accelerator has {format_bytes(capacity)}; the least that a {shape} needs of one is "
        f"{format_bytes(needed)}: short by {format_bytes(needed - capacity)}; raise maxSizePerFPGA or maxFPGAs"
        + (", or try --non-contiguous" if problem.precedence else "")
    )


def _least_capacity(problem: DagProblem, out_of_time: IsOver) -> float:
    """The least largest share of the bytes: the same problem with bytes in place of time, and nothing to transfer."""
    roomy = tuple(replace(kind, capacity_bytes=math.inf, transfer_factor=0.0) for kind in problem.kinds)
    runs = tuple(
        tuple(size if math.isfinite(time) else math.inf for size, time in zip(problem.sizes, row, strict=True))
        for row in problem.times
    )
    by_bytes = replace(problem, kinds=roomy, times=runs, nets=())
    return contiguous(by_bytes, out_of_time=out_of_time, prove=False).objective
