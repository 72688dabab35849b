"""Makes a placement problem smaller without losing its best placements: cycles fused, idle leaves absorbed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autopart.planning.graphs.dagproblem import DagProblem, contract

__all__ = ["Reduced", "absorb_leaves", "fuse_cycles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """A smaller problem, and its relaxation."""

    problem: DagProblem
    """every placement of it is one of the original"""
    relaxation: DagProblem
    """its optimum is not above the original's; the same object unless bytes were absorbed where memory may bind"""


def fuse_cycles(problem: DagProblem) -> DagProblem:
    """Items that precede one another (colour classes can) have to share a device in every contiguous placement."""
    return contract(problem, _components(problem.num_items, problem.precedence))


def _components(num_items: int, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    """Strongly connected components by two depth-first searches (Kosaraju 1978); the name is one of the items."""
    after: list[list[int]] = [[] for _ in range(num_items)]
    before: list[list[int]] = [[] for _ in range(num_items)]
    for a, b in pairs:
        after[a].append(b)
        before[b].append(a)
    finished: list[int] = []
    seen = [False] * num_items
    for root in range(num_items):
        stack = [(root, 0)] if not seen[root] else []
        seen[root] = True
        while stack:
            item, step = stack.pop()
            if step < len(after[item]):
                stack.append((item, step + 1))
                follower = after[item][step]
                if not seen[follower]:
                    seen[follower] = True
                    stack.append((follower, 0))
            else:
                finished.append(item)
    component = [-1] * num_items
    for root in reversed(finished):
        waiting = [root] if component[root] < 0 else []
        while waiting:
            item = waiting.pop()
            if component[item] < 0:
                component[item] = root
                waiting += before[item]
    return component


def absorb_leaves(problem: DagProblem, *, with_bytes: bool) -> Reduced:
    """Puts every item that takes no time to where its only neighbour is, again and again.

    An item is absorbed by another if it takes no time anywhere, every net it is in holds the other too, and it has no
    other neighbour in the precedence.  Moving it there changes no load for the worse.  Its bytes could matter, unless
    everything fits on one device: where they do, items that have any are absorbed only ``with_bytes``, and the
    relaxation then does not count them.
    """
    smallest = min((kind.capacity_bytes for kind in problem.kinds if kind.count), default=math.inf)
    slack = math.fsum(problem.sizes) <= smallest
    light = replace(problem, members=tuple((item,) for item in range(problem.num_items)))
    while targets := _targets(light, with_bytes or slack):
        group = [targets.get(item, item) for item in range(light.num_items)]
        kept = tuple(0.0 if item in targets else size for item, size in enumerate(light.sizes))
        light = contract(light if slack else replace(light, sizes=kept), group)
    owner = {item: index for index, items in enumerate(light.members) for item in items}
    group = [owner[item] for item in range(problem.num_items)]
    merged = contract(problem, group)
    sizes = tuple(light.sizes[name] for name in dict.fromkeys(group))
    same = all(math.isclose(a, b) for a, b in zip(sizes, merged.sizes, strict=True))
    return Reduced(problem=merged, relaxation=merged if same else replace(merged, sizes=sizes))


def _targets(problem: DagProblem, with_bytes: bool) -> dict[int, int]:
    """Items that can be absorbed, with what absorbs them; no item is on both sides."""
    neighbours: list[set[int]] = [set() for _ in range(problem.num_items)]
    for a, b in problem.precedence:
        neighbours[a].add(b)
        neighbours[b].add(a)
    together: list[set[int] | None] = [None] * problem.num_items
    for net in problem.nets:
        for pin in net.pins:
            before = together[pin]
            together[pin] = set(net.pins) if before is None else before & set(net.pins)
    targets: dict[int, int] = {}
    taken: set[int] = set()
    for item in range(problem.num_items):
        idle = not any(row[item] for row in problem.times) and (with_bytes or not problem.sizes[item])
        if not idle or len(neighbours[item]) > 1 or item in taken:
            continue
        choices = _partners(item, neighbours[item], together[item], problem.num_items)
        choices = {other for other in choices if other not in targets}
        if choices:
            targets[item] = min(choices)
            taken.add(targets[item])
    return targets


def _partners(item: int, neighbours: set[int], together: set[int] | None, num_items: int) -> set[int]:
    """What an idle item may be put with."""
    if together is None:
        return neighbours or ({0, min(1, num_items - 1)} - {item})
    return (together - {item}) & neighbours if neighbours else together - {item}
