"""Workloads made up for tests and benchmarks: the shapes of well-known graphs, with numbers of their own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from autopart.schema.workload import Workload, WorkloadEdge, WorkloadNode

__all__ = ["chain", "inception", "lstm_grid", "node", "random_workload", "training", "transformer", "workload"]

GIB = 2.0**30


def node(
    number: int, time: float, *, cpu: float | None = None, color: int | None = None, **fields: object
) -> WorkloadNode:
    """A forward node that a CPU runs ten times as slowly."""
    given: dict[str, object] = {"bytes": 1.0, "accelerator_allowed": True, "backward": False} | fields
    return WorkloadNode(
        id=number, accelerator_time=time, cpu_time=10 * time if cpu is None else cpu, color_class=color,
        **given,  # type: ignore[arg-type]
    )


def workload(
    nodes: Sequence[WorkloadNode], edges: Sequence[tuple[int, int, float]], *, accelerators: int = 2, cpus: int = 1,
    capacity: float = 16 * GIB,
) -> Workload:
    """Nodes and (source, target, cost) with devices."""
    return Workload(
        num_accelerators=accelerators, num_cpus=cpus, accelerator_bytes=capacity, nodes=tuple(nodes),
        edges=tuple(WorkloadEdge(source=a, target=b, cost=cost) for a, b, cost in edges),
    )


def _with_costs(
    nodes: Sequence[WorkloadNode], pairs: Sequence[tuple[int, int]], cost: float, **devices: int
) -> Workload:
    draw = random.Random(len(nodes))
    costs = {each.id: cost * (0.5 + draw.random()) for each in nodes}
    return workload(nodes, [(a, b, costs[a]) for a, b in pairs], **devices)


def chain(num_nodes: int, **devices: int) -> Workload:
    """One node after the other."""
    draw = random.Random(1)
    nodes = [node(i, 0.5 + draw.random()) for i in range(num_nodes)]
    return _with_costs(nodes, [(i, i + 1) for i in range(num_nodes - 1)], 0.3, **devices)


def inception(
    num_modules: int, branches: Sequence[int] = (2, 5, 6, 3), *, cost: float = 0.1, **devices: int
) -> Workload:
    """Modules of parallel branches that fork from a node and join in one."""
    draw = random.Random(2)
    nodes, pairs, last = [node(0, 0.5)], [], 0
    for _ in range(num_modules):
        ends = []
        for length in branches:
            before = last
            for _ in range(length):
                nodes.append(node(len(nodes), 0.2 + draw.random()))
                pairs.append((before, len(nodes) - 1))
                before = len(nodes) - 1
            ends.append(before)
        nodes.append(node(len(nodes), 0.1))
        last = len(nodes) - 1
        pairs += [(end, last) for end in ends]
    return _with_costs(nodes, pairs, cost, **devices)


def lstm_grid(num_chains: int, length: int, *, cost: float = 0.3, **devices: int) -> Workload:
    """Chains side by side that start at one node and meet in one."""
    draw = random.Random(3)
    nodes, pairs, ends = [node(0, 0.1)], [], []
    for _ in range(num_chains):
        before = 0
        for _ in range(length):
            nodes.append(node(len(nodes), 0.5 + draw.random()))
            pairs.append((before, len(nodes) - 1))
            before = len(nodes) - 1
        ends.append(before)
    nodes.append(node(len(nodes), 0.1))
    return _with_costs(nodes, [*pairs, *((end, len(nodes) - 1) for end in ends)], cost, **devices)


def transformer(num_layers: int, *, cost: float = 0.5, **devices: int) -> Workload:
    """Operators of an encoder: per layer projections with weights and biases, attention, residuals, two MLP parts."""
    draw = random.Random(4)
    nodes: list[WorkloadNode] = []
    pairs: list[tuple[int, int]] = []

    def add(time: float, *sources: int, size: float = 1e6) -> int:
        nodes.append(node(len(nodes), time * (0.8 + 0.4 * draw.random()), cpu=23 * time, bytes=size))
        pairs.extend((source, len(nodes) - 1) for source in sources)
        return len(nodes) - 1

    def linear(source: int, time: float) -> int:
        return add(0.05, add(time, source, add(0.0, size=4e6)), add(0.0, size=1e4))

    state, mask = add(0.3), add(0.1)
    for _ in range(num_layers):
        query, key, value = (add(0.02, linear(state, 0.5)) for _ in range(3))
        scores = add(0.1, add(0.4, query, add(0.02, key)), mask)
        context = add(0.3, add(0.15, scores), value)
        mixed = add(0.1, linear(context, 0.5), state)
        state = add(0.1, linear(add(0.1, linear(mixed, 1.5)), 1.5), mixed)
    return _with_costs(nodes, pairs, cost, **devices)


def training(forward: Workload) -> Workload:
    """The workload with a backward node for every forward one, of twice the time and in one colour class with it."""
    shift = 1 + max(each.id for each in forward.nodes)
    back = [
        replace(
            each, id=each.id + shift, backward=True, color_class=each.id,
            accelerator_time=2 * each.accelerator_time, cpu_time=2 * each.cpu_time,
        )
        for each in forward.nodes
    ]
    cost = forward.out_cost()
    mirrored = [
        WorkloadEdge(source=e.target + shift, target=e.source + shift, cost=cost.get(e.target, 0.1))
        for e in forward.edges
    ]
    colored = [replace(each, color_class=each.id) for each in forward.nodes]
    return replace(forward, nodes=(*colored, *back), edges=(*forward.edges, *mirrored))


def random_workload(
    seed: int, num_nodes: int, *, density: float = 0.3, colors: float = 0.0, accelerators: int = 2, cpus: int = 1,
    capacity: float = 1e9, unsupported: float = 0.0,
) -> Workload:
    """A random acyclic graph; ``colors`` is the share of nodes that join the class of another."""
    draw = random.Random(seed)
    nodes = []
    for i in range(num_nodes):
        color = draw.randrange(num_nodes) if draw.random() < colors else None
        time = draw.choice((0.0, 1.0, 2.0, 3.5))
        nodes.append(node(
            i, time, cpu=draw.choice((0.0, 4.0, 9.0)), color=color, bytes=float(draw.randrange(4)),
            accelerator_allowed=draw.random() >= unsupported,
        ))
    cost = [draw.choice((0.0, 0.5, 1.5)) for _ in nodes]
    edges = [(a, b, cost[a]) for a in range(num_nodes) for b in range(a + 1, num_nodes) if draw.random() < density]
    return workload(nodes, edges, accelerators=accelerators, cpus=cpus, capacity=capacity)
