"""What would change a plan: speeds, links and memory, each halved and doubled, planned anew each time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import combinations, pairwise

from autopart.advising.whatif import SAME, Problem, first_factor, is_other
from autopart.schema.advice import Altered, Quantity, Sensitivity, Variant
from autopart.schema.device import Cluster, Link
from autopart.schema.plan import Plan

__all__ = ["instead_of", "links_in_use", "sensitivities"]

FURTHEST = 8.0
"""the least and the most multiple at which another plan is looked for"""

MOST_LINKS = 3
"""of more rules than that only all together are changed"""


def sensitivities(problem: Problem) -> tuple[Sensitivity, ...]:
    """Of every kind the speed and the memory, of the links in use the bandwidth."""
    kinds = tuple(dict.fromkeys(device.kind for device in problem.cluster.devices))
    found = [
        _of(problem, "speed", kind, None, functools.partial(problem.with_speed, kind=kind)) for kind in kinds
    ]
    for link in links_in_use(problem):
        name = "all links" if link is None else " - ".join(link.ends)
        value = None if link is None else link.bandwidth_bytes_per_second
        found.append(_of(problem, "bandwidth", name, value, functools.partial(problem.with_links, link=link)))
    for kind in kinds:
        memory = max(device.memory_bytes for device in problem.cluster.devices if device.kind == kind)
        found.append(_of(problem, "memory", kind, memory, functools.partial(problem.with_memory, kind=kind)))
    return tuple(found)


def links_in_use(problem: Problem) -> tuple[Link | None, ...]:
    """Link rules between and in the plan's stages (of one device: between all devices); None: all together."""
    cluster, plan = problem.cluster, problem.plan
    names = [name for stage in plan.stages for name in stage.devices]
    pairs = list(pairwise(names)) or list(combinations((device.name for device in cluster.devices), 2))
    rules = tuple(dict.fromkeys(
        cluster.link(cluster.device(one), cluster.device(other)) for one, other in pairs if one != other
    ))  # fmt: skip
    if len(rules) <= 1:
        return rules
    return (None, *(rules if len(rules) <= MOST_LINKS else ()))


def _of(
    problem: Problem, quantity: Quantity, of: str, value: float | None, changed: Callable[[float], Problem]
) -> Sensitivity:
    at = functools.cache(changed)
    assert problem.kept is not None, "what would change a plan is asked of one that fits"
    least, most = problem.kept.step_seconds, at(FURTHEST).best
    assert most is not None, "more of a thing never makes a plan impossible"

    def differs(factor: float) -> bool:
        """Whether another plan is better; what is worse helps no plan, and what is better none more than the most."""
        kept, bound = at(factor).kept, least if factor < 1 else most.step_seconds
        if kept is not None and kept.step_seconds <= bound * (1 + SAME):
            return False
        return is_other(at(factor))

    other = functools.cache(differs)
    return Sensitivity(
        quantity=quantity, of=of, value=value, halved=_altered(at(0.5), is_other=other(0.5)),
        doubled=_altered(at(2.0), is_other=other(2.0)),
        other_below=first_factor(other, 0.5) or first_factor(other, 1 / FURTHEST, near=0.5),
        other_above=first_factor(other, 2.0) or first_factor(other, FURTHEST, near=2.0),
    )  # fmt: skip


def _altered(problem: Problem, *, is_other: bool) -> Altered:
    kept = problem.kept
    if not is_other:
        seconds = None if kept is None else kept.step_seconds
        return Altered(kept_seconds=seconds, best_seconds=seconds, instead="")
    best = problem.best
    return Altered(
        kept_seconds=None if kept is None else kept.step_seconds,
        best_seconds=None if best is None else best.step_seconds,
        instead="" if best is None else instead_of(problem.plan, problem.cluster, best),
    )


def instead_of(plan: Plan, cluster: Cluster, other: Variant) -> str:
    """What another plan does that this one does not: devices, stages, layers, in that order of interest."""
    mine = {name for stage in plan.stages for name in stage.devices}
    theirs = {name for names in other.devices for name in names}
    order = [device.name for device in cluster.devices]
    groups = [frozenset(stage.devices) for stage in plan.stages if len(stage.devices) > 1]
    parts = []
    if added := [name for name in order if name in theirs - mine]:
        parts.append(f"uses {', '.join(added)}")
    if gone := [name for name in order if name in mine - theirs]:
        parts.append(f"leaves out {', '.join(gone)}")
    if not parts and len(other.devices) != len(plan.stages):
        parts.append(f"has {len(other.devices)} stages")
    if not parts and groups != [frozenset(names) for names in other.devices if len(names) > 1]:
        parts.append("groups its devices otherwise")
    if not parts:
        parts.append(f"moves {_moved(plan, other)} of {plan.model.num_layers} layers")
    if other.num_microbatches != plan.schedule.num_microbatches // plan.job.rounds:
        one, many = ("micro-batch", "micro-batches") if plan.generation is None else ("group", "groups")
        parts.append(f"takes {other.num_microbatches} {many if other.num_microbatches > 1 else one}")
    return ", ".join(parts)


def _moved(plan: Plan, other: Variant) -> int:
    """Layers that run on another device."""
    here = [stage.devices for stage in plan.stages for _ in stage.layers]
    sizes = [last - first for first, last in pairwise(other.boundaries)]
    there = [names for names, size in zip(other.devices, sizes, strict=True) for _ in range(size)]
    return sum(one != two for one, two in zip(here, there, strict=True))
