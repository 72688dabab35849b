"""A plan rehearsed on emulated devices: processes of this machine with the speed, memory and links of others."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

from autopart.errors import DeviceError
from autopart.orders import ONE_PER_RANK, torch_name
from autopart.running.cuts import CutCrossings
from autopart.running.emulating.limitedlinks import LimitedLinks, SlowCut
from autopart.running.launching.records import Throttle
from autopart.running.stages import boundary_examples, spans
from autopart.schema.device import Cluster, Link
from autopart.schema.graph import Graph
from autopart.schema.plan import Plan
from autopart.units import format_bytes, format_rate, format_seconds

__all__ = ["emulated_plan", "emulation_notes", "limited_links"]

_HOW: dict[Throttle, str] = {
    "sleep": "by sleeping until its CPU time / speed has passed",
    "quota": "by the kernel's CPU quota",
    "plan": "by sleeping until the plan's time of each part has passed",
}


def emulated_plan(plan: Plan, cluster: Cluster) -> Plan:
    """The plan with its devices replaced by emulated ones of the same names, and its links by the cluster's.

    Args:
        plan: of any devices, here or not; what it predicts stays as it is.
        cluster: of processor cores with speeds and memory, as a cluster file gives them.

    Raises:
        DeviceError: a device of the plan is not in the cluster, or is no processor core there.
    """
    used = tuple(dict.fromkeys(name for stage in plan.stages for name in stage.devices))
    known = {device.name: device for device in cluster.devices}
    missing = [name for name in used if name not in known]
    if missing:
        raise DeviceError(
            f"the plan uses {', '.join(missing)}, which the cluster to emulate does not have (it has "
            f"{', '.join(known)}); give it a row with that name and a speed, or plan for this cluster"
        )
    unlike = [name for name in used if known[name].backend != "cpu" or known[name].num_threads != 1]
    if unlike:
        raise DeviceError(
            f"{unlike[0]} is a {known[unlike[0]].kind} in the cluster to emulate; give it speed: 0.5, say, "
            f"half of a core of this machine, instead of a kind"
        )
    groups = {(stage.data_parallel, stage.tensor_parallel) for stage in plan.stages}
    if len(groups) > 1 and any(map(_is_limited, (*cluster.links, *plan.cluster.links))):
        raise DeviceError(
            "the plan's stages are groups of different sizes, whose links cannot be limited; leave links out of the "
            "cluster to emulate, or plan with --data-parallel 1 --tensor-parallel 1"
        )
    devices = tuple(known.get(device.name, device) for device in plan.cluster.devices)
    links = (*cluster.links, *plan.cluster.links)
    return dataclasses.replace(plan, cluster=dataclasses.replace(plan.cluster, devices=devices, links=links))


def _is_limited(link: Link) -> bool:
    return link.origin == "given"


def _cut_links(plan: Plan, member: int = 0) -> list[tuple[frozenset[int], Link] | None]:
    """Of the cut after every stage but the last: between which ranks, and the link given for a member of each."""
    found: list[tuple[frozenset[int], Link] | None] = []
    for one, other in zip(plan.stages[:-1], plan.stages[1:], strict=True):
        pair = frozenset((plan.ranks[one.index], plan.ranks[other.index]))
        ends = [plan.cluster.device(each.devices[member % len(each.devices)]) for each in (one, other)]
        link = next((each for each in plan.cluster.links if each.matches(*ends)), None) if len(pair) > 1 else None
        found.append((pair, link) if link is not None and _is_limited(link) else None)
    return found


def limited_links(
    path: Path, plan: Plan, graph: Graph, cuts: Sequence[CutCrossings], *, early: bool = False, member: int = 0
) -> LimitedLinks:
    """The given links of a plan's cluster, for one rank; others have no limit.

    Where several devices share every stage, each member talks to the next group's of its number, over their own link.

    Args:
        path: beside which is a file that all ranks of this member's number share.
        plan: of emulated devices.
        graph: of one micro-batch.
        cuts: how values cross, so that encoded ones take as long as they are.
        early: receives are posted before they are needed.
        member: which of the devices of its stages the rank is.
    """
    training, between = plan.job.mode == "train", _cut_links(plan, member)
    numbers = {pair: index for index, pair in enumerate(dict.fromkeys(each[0] for each in between if each))}
    slow: list[SlowCut | None] = []
    ups = [one < other for one, other in itertools.pairwise(plan.ranks)]
    for found, crossings, (_, end), up in zip(between, cuts, spans(plan, graph)[:-1], ups, strict=True):
        if found is None:
            slow.append(None)
            continue
        pair, link = found
        wires = boundary_examples(graph, end, training=training, crossings=crossings)
        slow.append(SlowCut(
            link=numbers[pair], goes_up=up,
            forward_seconds=sum(link.seconds(wire.nbytes) for wire in wires),
            backward_seconds=sum(link.seconds(wire.nbytes) for wire in wires if wire.requires_grad),
        ))  # fmt: skip
    name, num = plan.schedule.name if training else "gpipe", plan.schedule.num_microbatches
    stock = None if early else torch_name(name, plan.ranks, num)
    return LimitedLinks(
        path.with_name(f"{path.name}{member}"), slow, num, both_ways=stock not in ONE_PER_RANK.values(),
        waits_for_sends=stock == ONE_PER_RANK["1f1b"],
    )


def emulation_notes(plan: Plan, throttle: Throttle) -> tuple[str, ...]:
    """What is emulated, and how, in sentences."""
    devices = [plan.cluster.device(name) for name in plan.devices_by_rank]
    speeds = ", ".join(f"{device.name} at {device.speed:g} of a core" for device in devices)
    caps = ", ".join(f"{device.name} {format_bytes(device.memory_bytes)}" for device in devices)
    ends = zip(plan.stages[:-1], plan.stages[1:], strict=True)
    links = dict.fromkeys(
        f"{one.devices[0]}-{other.devices[0]} {format_rate(found[1].bandwidth_bytes_per_second)} and "
        f"{format_seconds(found[1].latency_seconds)}"
        for (one, other), found in zip(ends, _cut_links(plan), strict=True) if found
    )
    sentences = [f"Emulated: {speeds}, {_HOW[throttle]}.", f"Memory caps, kept during the first steps: {caps}."]
    if links:
        sentences.append(f"Links slowed down: {', '.join(links)}.")
    return tuple(sentences)
