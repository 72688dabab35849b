"""Places a workload (schema/workload.py) on its accelerators and CPUs, with a proof of how good that is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from autopart.errors import InfeasibleError
from autopart.planning.graphs.dagfree import non_contiguous
from autopart.planning.graphs.dagplan import Placement, contiguous
from autopart.planning.graphs.dagproblem import DagProblem, DeviceKind, Net, contract
from autopart.planning.graphs.workloadcheck import check_workload, device_loads
from autopart.planning.graphs.workloadmisfit import misfit
from autopart.planning.solving.effort import IsOver
from autopart.schema.job import SolverName
from autopart.schema.workload import Workload, WorkloadAnswer

__all__ = ["KIND_NAMES", "plan_workload", "problem_of"]

KIND_NAMES = ("accelerator", "cpu")

EXACT_SHARE, SEARCH_SHARE = 0.75, 0.5
"""of the time, for the dynamic program over all contiguous placements, and for the search where they are too many: the
same in both modes, so that what need not be contiguous starts from what a contiguous search would answer"""
SHARE_AFTERWARDS = 0.25
"""of the time, that finding out what is short may take at least"""

TOLERANCE = 2e-6
"""relative: below it the solvers' own tolerances decide"""


def plan_workload(
    workload: Workload, *, contiguous_only: bool = True, solver: SolverName = "auto", time_limit_seconds: float = 60.0,
    gap: float = 1e-3, clock: Callable[[], float] = time.perf_counter,
) -> WorkloadAnswer:
    """The placement with the least largest load.

    Args:
        workload: what to place.
        contiguous_only: the devices can be put in an order in which every forward edge leads to the same or a later
            device, as a pipeline needs it; backward nodes go where their colour classes go.
        solver: of the integer program, which only placements without contiguity need.
        time_limit_seconds: for everything.
        gap: how far from the bound is near enough.
        clock: seconds, for the time limit.

    Returns:
        The answer, checked.

    Raises:
        InfeasibleError: no placement fits; says which memory is short by how much.
        CheckError: a fault of ours.
    """
    began = clock()

    def until(share: float) -> IsOver:
        return lambda: clock() >= began + share * time_limit_seconds

    best = contiguous(
        problem_of(workload, True), out_of_time=until(1.0), exact_over=until(EXACT_SHARE),
        search_over=until(SEARCH_SHARE), prove=contiguous_only,
    )
    if not contiguous_only:
        best = non_contiguous(
            problem_of(workload, False), best, solver=solver, gap=gap, clock=clock,
            time_limit_seconds=time_limit_seconds - (clock() - began),
        )
    if not best.parts:
        deadline = max(began + time_limit_seconds, clock() + SHARE_AFTERWARDS * time_limit_seconds)
        raise InfeasibleError(misfit(
            workload, problem_of(workload, contiguous_only), proven=best.bound == math.inf,
            out_of_time=lambda: clock() >= deadline,
        ))
    answer = _answer(workload, best, contiguous_only, gap, clock() - began)
    check_workload(workload, answer)
    return answer


def _answer(
    workload: Workload, best: Placement, contiguous_only: bool, gap: float, solve_seconds: float
) -> WorkloadAnswer:
    device: dict[int, str] = {}
    used = [0] * len(KIND_NAMES)
    for kind, nodes in best.parts:
        device |= dict.fromkeys(nodes, f"{KIND_NAMES[kind]}{used[kind]}")
        used[kind] += 1
    assignment = tuple((node.id, device[node.id]) for node in workload.nodes)
    loads = device_loads(workload, assignment)
    objective = max(load.load for load in loads)
    bound = min(best.bound, objective)
    found_gap = objective / bound - 1 if bound > 0 else 0.0 if objective == 0 else math.inf
    return WorkloadAnswer(
        mode="contiguous" if contiguous_only else "non-contiguous", objective=objective, bound=bound,
        bound_name=best.bound_name, gap=found_gap, outcome="proven" if found_gap <= max(gap, TOLERANCE) else "feasible",
        solver=best.solver, solve_seconds=solve_seconds, assignment=assignment, loads=loads,
    )


def problem_of(workload: Workload, contiguous_only: bool) -> DagProblem:
    """The workload with one item per colour class; its precedence only if the placement is to be contiguous."""
    number = {node.id: index for index, node in enumerate(workload.nodes)}
    group = _color_groups(workload)
    pins: dict[int, set[int]] = {}
    for edge in workload.edges:
        pins.setdefault(edge.source, {number[edge.source]}).add(number[edge.target])
    cost = workload.out_cost()
    nodes = workload.nodes
    one_per_node = DagProblem(
        kinds=(
            DeviceKind(name="accelerator", count=workload.num_accelerators, capacity_bytes=workload.accelerator_bytes),
            DeviceKind(name="cpu", count=workload.num_cpus, capacity_bytes=math.inf, transfer_factor=0.0),
        ),
        times=(
            tuple(node.accelerator_time if node.accelerator_allowed else math.inf for node in nodes),
            tuple(node.cpu_time for node in nodes),
        ),
        sizes=tuple(node.bytes for node in nodes),
        nets=tuple(Net(pins=tuple(sorted(ends)), cost=cost[source]) for source, ends in pins.items()),
        precedence=_precedence(workload, group) if contiguous_only else (),
        members=tuple((node.id,) for node in nodes),
    )
    return contract(one_per_node, group)


def _color_groups(workload: Workload) -> list[int]:
    """Per node, the index of the first node of its colour class."""
    first: dict[int, int] = {}
    return [
        index if node.color_class is None else first.setdefault(node.color_class, index)
        for index, node in enumerate(workload.nodes)
    ]


def _precedence(workload: Workload, group: list[int]) -> tuple[tuple[int, int], ...]:
    """Forward edges; a colour class without forward nodes is tied in by its backward edges, mirrored."""
    number = {node.id: index for index, node in enumerate(workload.nodes)}
    backward = [node.backward for node in workload.nodes]
    with_forward = {name for name, back in zip(group, backward, strict=True) if not back}
    pairs = []
    for edge in workload.edges:
        source, target = number[edge.source], number[edge.target]
        if not backward[target]:
            pairs.append((source, target))
        elif backward[source] and not {group[source], group[target]} <= with_forward:
            pairs.append((target, source))
    return tuple(pairs)
