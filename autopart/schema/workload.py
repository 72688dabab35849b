"""Placement workloads from elsewhere, and the answers to them, in the file's own unit of time.

The model is that of Tarnawski et al., Efficient Algorithms for Device Placement of DNN Graph Operators (NeurIPS 2020),
section 3: k equal accelerators with a memory cap, some CPUs without one, and a graph of operators or layers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["DeviceLoad", "Workload", "WorkloadAnswer", "WorkloadEdge", "WorkloadNode"]

COST_TOLERANCE = 1e-6
"""what the costs of one node's edges may differ by, as in the format's own reader"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadNode:
    """An operator or a layer, or the backward half of one."""

    id: int
    cpu_time: float
    accelerator_time: float
    bytes: float
    """taken on the accelerator it is placed on"""
    accelerator_allowed: bool
    backward: bool
    color_class: int | None
    """nodes of one class are placed on one device; None: a class of its own"""

    def __post_init__(self) -> None:
        for what in ("cpu_time", "accelerator_time", "bytes"):
            value = getattr(self, what)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"node {self.id}: {what} is {value}; it must be finite and not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEdge:
    """The target needs the source's output; ``cost`` is the time to move that output to or from an accelerator."""

    source: int
    target: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A graph and the devices it is to be placed on."""

    num_accelerators: int
    num_cpus: int
    accelerator_bytes: float
    """memory of one accelerator"""
    nodes: tuple[WorkloadNode, ...]
    edges: tuple[WorkloadEdge, ...]

    def __post_init__(self) -> None:
        if self.num_accelerators < 0 or self.num_cpus < 0 or self.num_accelerators + self.num_cpus < 1:
            raise ValueError(f"{self.num_accelerators} accelerators and {self.num_cpus} CPUs: there must be a device")
        if not (math.isfinite(self.accelerator_bytes) and self.accelerator_bytes >= 0):
            raise ValueError(f"an accelerator of {self.accelerator_bytes} bytes: give a finite number")
        if not self.nodes:
            raise ValueError("there are no nodes to place")
        backward = {node.id: node.backward for node in self.nodes}
        if len(backward) != len(self.nodes):
            raise ValueError(f"{len(self.nodes)} nodes have {len(backward)} different ids; ids must differ")
        _check_edges(self.edges, backward)
        if stuck := _on_cycles(backward, self.edges):
            raise ValueError(f"the graph has a cycle (node {min(stuck)} is on or behind one); it must be acyclic")

    def out_cost(self) -> dict[int, float]:
        """What moving each node's output costs, for nodes whose output is needed."""
        costs: dict[int, float] = {}
        for edge in self.edges:
            costs.setdefault(edge.source, edge.cost)
        return costs


def _check_edges(edges: tuple[WorkloadEdge, ...], backward: dict[int, bool]) -> None:
    cost: dict[int, float] = {}
    for edge in edges:
        name = f"edge {edge.source} → {edge.target}"
        for end in (edge.source, edge.target):
            if end not in backward:
                raise ValueError(f"{name}: there is no node {end}")
        if not (math.isfinite(edge.cost) and edge.cost >= 0):
            raise ValueError(f"{name}: cost is {edge.cost}; it must be finite and not negative")
        if abs(cost.setdefault(edge.source, edge.cost) - edge.cost) > COST_TOLERANCE:
            raise ValueError(
                f"{name} costs {edge.cost}, another edge of node {edge.source} costs {cost[edge.source]}; "
                f"one output has one cost"
            )
        if backward[edge.source] and not backward[edge.target]:
            raise ValueError(f"{name} leads from a backward to a forward node")


def _on_cycles(nodes: Iterable[int], edges: tuple[WorkloadEdge, ...]) -> set[int]:
    """Nodes that no topological order reaches."""
    waiting = dict.fromkeys(nodes, 0)
    targets: dict[int, list[int]] = {node: [] for node in waiting}
    for edge in edges:
        waiting[edge.target] += 1
        targets[edge.source].append(edge.target)
    ready = deque(node for node, count in waiting.items() if not count)
    while ready:
        node = ready.popleft()
        del waiting[node]
        for target in targets[node]:
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    return set(waiting)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoad:
    """What one device has to do per sample: its computing, and for an accelerator its transfers in and out."""

    device: str
    load: float
    bytes: float
    """taken on an accelerator; CPUs have no cap"""
    num_nodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadAnswer:
    """Where every node goes, and the proof of how good that is: no placement of the mode has a smaller maximum load
    than ``bound``.
    """

    mode: Literal["contiguous", "non-contiguous"]
    objective: float
    """largest load of a device, in the workload's unit of time"""
    bound: float
    bound_name: str
    gap: float
    """objective / bound - 1"""
    outcome: Literal["proven", "feasible"]
    solver: str
    solve_seconds: float
    assignment: tuple[tuple[int, str], ...]
    """(node id, ``accelerator<i>`` or ``cpu<i>``), in the order of the workload's nodes"""
    loads: tuple[DeviceLoad, ...]
