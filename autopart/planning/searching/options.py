"""A layout with everything that is known of it: what plans and baselines are compared by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autopart.planning.costing.costs import Layout, StageCost, layout_costs, misfit, objective_seconds
from autopart.planning.costing.nodes import devices_along
from autopart.planning.costing.parallel import ALONE
from autopart.planning.searching.chain import Path
from autopart.planning.searching.instance import Instance
from autopart.planning.simulating.simulate import StageTimes, step_seconds
from autopart.schema.device import Cluster, Device
from autopart.schema.job import Job, ScheduleName
from autopart.schema.problem import Candidate

__all__ = ["LOOPED", "Option", "evaluate", "layout_of", "rank", "schedules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A layout of a candidate, evaluated."""

    candidate: Candidate
    layout: Layout
    costs: tuple[StageCost, ...]
    training: bool
    objective_seconds: float
    misfit: str
    """why it breaks a memory cap, else empty"""

    @property
    def step_seconds(self) -> float:
        """Simulated time of one step."""
        times = tuple(
            StageTimes(
                forward_seconds=cost.forward_seconds, backward_seconds=cost.backward_seconds,
                receive_seconds=cost.receive_seconds, return_seconds=cost.return_seconds,
                optimizer_seconds=cost.optimizer_seconds, exchanges_with=cost.exchanges_with,
            )
            for cost in self.costs
        )
        layout = self.layout
        return step_seconds(
            times, layout.schedule, layout.num_microbatches, training=self.training, ranks=layout.ranks
        )

    def busy_seconds(self, stage: int) -> float:
        """Computing of one stage in a step: forward, backward and optimizer, not receiving."""
        cost = self.costs[stage]
        each = cost.forward_seconds + cost.backward_seconds
        return self.layout.num_microbatches * each + cost.optimizer_seconds


LOOPED: frozenset[ScheduleName] = frozenset({"interleaved", "looped-bfs", "zero-bubble"})
"""schedules under which a device may own several stages; their objective is the simulated step"""


def schedules(job: Job) -> tuple[ScheduleName, ...]:
    """The schedules a job allows, the one that needs least memory first; inference only ever runs forward."""
    if job.mode == "infer":
        return ("gpipe",)
    return (job.schedule,) if job.schedule is not None else ("1f1b", "gpipe")


def evaluate(candidate: Candidate, cluster: Cluster, job: Job, layout: Layout) -> Option:
    """A layout's costs and objective; it is simulated when its step time is asked for.

    Raises:
        KeyError: two neighbouring stages lie on devices that no link connects.
    """
    costs = layout_costs(candidate, cluster, job, layout)
    option = Option(
        candidate=candidate,
        layout=layout,
        costs=costs,
        training=job.mode == "train",
        objective_seconds=objective_seconds(
            costs, layout.num_microbatches, layout.schedule, latency=job.objective == "latency"
        ),
        misfit=misfit(costs, layout),
    )
    # the formula is of one stage per device and a backward in one piece
    return replace(option, objective_seconds=option.step_seconds) if layout.schedule in LOOPED else option


def layout_of(instance: Instance, path: Path, schedule: ScheduleName, cluster: Cluster) -> Layout | None:
    """The layout of a path on a cluster; of a group's devices the first ones are used, in path order.

    Where the instance is of a cluster with merged nodes, every stage gets devices of one node, if it can be on the node
    of the stage before; None if the stages do not go into the nodes.
    """
    arcs = instance.arcs
    stages = [(int(arcs.group[arc]), int(arcs.width[arc])) for arc in path]
    stays = [int(arcs.room[arc]) == 0 for arc in path]
    places = [tuple(device.name for device in devices) for devices in _devices(instance, stages, stays, cluster)]
    if not places:
        return None
    boundaries = [instance.boundaries[int(arcs.first[arc])] for arc in path]
    chosen = tuple(instance.ways[int(arcs.way[arc])] for arc in path)
    plain = all(way == ALONE for way in chosen)
    return Layout(
        num_microbatches=instance.num_microbatches, schedule=schedule,
        boundaries=(*boundaries, instance.boundaries[-1]), devices=tuple(names[0] for names in places),
        ways=() if plain else chosen, others=() if plain else tuple(names[1:] for names in places),
    )


def rank(option: Option, job: Job) -> tuple[float, int, int, tuple[int, ...], tuple[str, ...]]:
    """Sorting key: the simulated step (for latency the objective), then fewer stages, fewer micro-batches, names."""
    seconds = option.objective_seconds if job.objective == "latency" else option.step_seconds
    layout = option.layout
    return (seconds, layout.num_stages, layout.num_microbatches, layout.boundaries, layout.devices)


def _devices(
    instance: Instance, stages: list[tuple[int, int]], stays: list[bool], cluster: Cluster
) -> tuple[tuple[Device, ...], ...]:
    if instance.cluster != cluster:
        return devices_along(cluster, instance.groups, stages, stays)
    next_device, places = [0] * instance.num_groups, []
    for group, width in stages:
        begin = next_device[group]
        places.append(instance.groups[group].devices[begin : begin + width])
        next_device[group] += width
    return tuple(places)
