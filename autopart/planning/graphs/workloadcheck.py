"""Rechecks an answer to a workload from the workload alone: no solver, no reduction, no code of the planner's."""

from __future__ import annotations

import math

from autopart.planning.check import CheckError
from autopart.schema.workload import DeviceLoad, Workload, WorkloadAnswer

__all__ = ["check_workload", "device_loads", "order_of_devices"]

TOLERANCE = 1e-9


def device_loads(workload: Workload, assignment: tuple[tuple[int, str], ...]) -> tuple[DeviceLoad, ...]:
    """Load and bytes of every device of the workload, used or not, accelerators first.

    Per accelerator: computing, plus the cost of every node of its own whose output is needed elsewhere and of every
    node elsewhere whose output it needs, each once (Tarnawski et al. 2020, section 3).  A CPU pays no transfers.
    """
    place = dict(assignment)
    needed_by: dict[int, set[str]] = {}
    for edge in workload.edges:
        needed_by.setdefault(edge.source, set()).add(place[edge.target])
    cost = workload.out_cost()
    names = [f"accelerator{i}" for i in range(workload.num_accelerators)]
    loads = []
    for device in names + [f"cpu{i}" for i in range(workload.num_cpus)]:
        inside = [node for node in workload.nodes if place[node.id] == device]
        if device.startswith("cpu"):
            load = math.fsum(node.cpu_time for node in inside)
        else:
            sends = [cost[u] for u, users in needed_by.items() if place[u] == device and users - {device}]
            receives = [cost[u] for u, users in needed_by.items() if place[u] != device and device in users]
            load = math.fsum([*(node.accelerator_time for node in inside), *sends, *receives])
        taken = math.fsum(node.bytes for node in inside)
        loads.append(DeviceLoad(device=device, load=load, bytes=taken, num_nodes=len(inside)))
    return tuple(loads)


def check_workload(workload: Workload, answer: WorkloadAnswer) -> None:
    """Recomputes everything an answer says of itself.

    Raises:
        CheckError: a node is missing or on no device, a colour class is torn apart, memory does not suffice, a node is
            where it cannot run, a contiguous placement has no order, or the objective is not the largest load.
    """
    if [node for node, _ in answer.assignment] != [node.id for node in workload.nodes]:
        raise CheckError("the assignment does not name every node once, in order")
    loads = device_loads(workload, answer.assignment)
    known = {load.device for load in loads}
    place = dict(answer.assignment)
    color: dict[int, str] = {}
    for node in workload.nodes:
        device = place[node.id]
        if device not in known:
            raise CheckError(f"node {node.id} is on {device}, which is no device of the workload")
        if not node.accelerator_allowed and not device.startswith("cpu"):
            raise CheckError(f"node {node.id} is on {device}, but no accelerator can run it")
        if node.color_class is not None and color.setdefault(node.color_class, device) != device:
            raise CheckError(f"colour class {node.color_class} is on {color[node.color_class]} and on {device}")
    _check_loads(workload, answer, loads)
    if answer.mode == "contiguous" and order_of_devices(workload, answer.assignment) is None:
        raise CheckError("the placement is not contiguous: its forward edges lead around between devices")


def _check_loads(workload: Workload, answer: WorkloadAnswer, loads: tuple[DeviceLoad, ...]) -> None:
    for load in loads:
        if load.device.startswith("accelerator") and load.bytes > workload.accelerator_bytes * (1 + TOLERANCE):
            raise CheckError(f"{load.device} gets {load.bytes:g} bytes and has {workload.accelerator_bytes:g}")
    largest = max(load.load for load in loads)
    if not math.isclose(largest, answer.objective, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or answer.loads != loads:
        raise CheckError(f"the largest load is {largest:g}, the answer says {answer.objective:g}")
    if answer.bound > answer.objective * (1 + TOLERANCE):
        raise CheckError(f"the bound {answer.bound:g} is above the objective {answer.objective:g}")


def order_of_devices(workload: Workload, assignment: tuple[tuple[int, str], ...]) -> tuple[str, ...] | None:
    """Devices in an order in which every forward edge leads to the same or a later one; None if there is none."""
    place = dict(assignment)
    backward = {node.id: node.backward for node in workload.nodes}
    later = {
        (place[edge.source], place[edge.target]) for edge in workload.edges
        if not backward[edge.target] and place[edge.source] != place[edge.target]
    }
    waiting = sorted(set(place.values()))
    order: list[str] = []
    while waiting:
        free = [device for device in waiting if not any((other, device) in later for other in waiting)]
        if not free:
            return None
        order.append(free[0])
        waiting.remove(free[0])
    return tuple(order)
