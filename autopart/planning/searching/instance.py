"""A path problem: the arcs, which are stages that fit with what they cost, and what a path over them has to keep.

An arc runs from node (first boundary, link class before) to node (last boundary, link class of its own group); a plan
is a path from (0, nobody) to (end, any class).  Under 1F1B nodes may know the class behind too (``periods``), and what
is called a class below is then a number of both.  See docs/model.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.groups import Group
from autopart.planning.costing.parallel import Way
from autopart.schema.device import Cluster
from autopart.schema.job import ScheduleName

__all__ = ["Arcs", "Instance"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arcs:
    """Parallel arrays, sorted by (first, before, last, group, way); boundaries are indices into the instance's."""

    first: Ints
    last: Ints
    group: Ints
    before: Ints
    """link class of the stage before; ``num_classes`` for the first stage"""
    after: Ints
    """link class of its own group"""
    way: Ints
    """index into the instance's ways"""
    width: Ints
    """devices it takes"""
    seconds: Floats
    """how often it comes round: compute, the incoming boundary and in training that behind it (``periods``)"""
    ahead: Floats
    """the forward part of ``seconds``: receiving and computing"""
    weight: Floats
    """its share of the objective that does not repeat: compute, incoming boundary, for the first stage the optimizer"""
    update: Floats
    """what its own optimizer adds to a path if it ends last (``updates``); 0 where it cannot, and for first stages"""
    saves: Floats
    """what it takes off a path's weights if the optimizer that ends last is one of a stage behind it"""
    most_in_flight: Ints
    """micro-batches in flight that its memory holds; the number of devices if that never binds"""
    room: Ints
    """devices of the node that it may be the first stage on; 0 if the stage before is on the same node (row C11)"""

    def __len__(self) -> int:
        return len(self.first)

    @property
    def are_late(self) -> bool:
        """Whether an optimizer behind the first stage may be the last to end."""
        return bool((self.update > 0).any())

    def sum_along(self, path: Sequence[int]) -> float:
        """Sum of the weights of a path, and what the optimizer that ends last adds to it."""
        chosen = list(path)
        saved = np.cumsum(self.saves[chosen]) - self.saves[chosen]
        return float(self.weight[chosen].sum() + (self.update[chosen] - saved).max(initial=0.0))

    def keep(self, mask: Bools) -> Arcs:
        """The arcs for which the mask is true."""
        return Arcs(**{name: getattr(self, name)[mask] for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A path problem: one candidate with one schedule on one cluster."""

    num_microbatches: int
    schedule: ScheduleName
    boundaries: tuple[int, ...]
    merged: bool
    """layers were merged into items: bounds hold for cuts between items only"""
    groups: tuple[Group, ...]
    link_classes: tuple[int, ...]
    """of every group: groups of one class have the same link to every group"""
    ways: tuple[Way, ...]
    arcs: Arcs
    cluster: Cluster
    """its groups are of this one, the real one or that with its nodes merged"""
    num_stages: int | None
    """exactly so many, if set"""
    most_stages: int
    """torch's Schedule1F1B refuses fewer micro-batches than stages"""
    repeats: int
    """how often the largest stage time counts: M - 1, or 0 for latency"""
    floor_seconds: float
    """no plan's largest stage time is below"""
    alone_seconds: tuple[float, ...]
    """of every group: one micro-batch of the whole model on one of its devices"""
    prices: tuple[float, ...] = ()
    """of one device of every group, in US dollars per hour; () where no budget is set"""
    budget: float = 0.0
    """what the devices in use may cost together"""
    scattered: tuple[int, ...] = ()
    """groups whose devices stand on several nodes, merged: row C11 is about them"""
    num_labels: int = 0
    """numbers of pairs of link classes, where nodes know the class behind as well; else 0"""

    @property
    def in_phases(self) -> bool:
        """Whether all forwards of a step come first: the longest forward and the longest backward add up."""
        backward = self.arcs.seconds - self.arcs.ahead
        return self.schedule == "gpipe" and self.repeats > 0 and bool((backward > 1e-12 * self.arcs.seconds).any())

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.groups)

    @property
    def num_classes(self) -> int:
        """Number of link classes that nodes tell apart; as a class it means the source of the pipeline."""
        return self.num_labels or max(self.link_classes) + 1

    @property
    def widest(self) -> int:
        """Most devices of a stage."""
        return max(way.width for way in self.ways)

    @property
    def end(self) -> int:
        """Index of the last boundary."""
        return len(self.boundaries) - 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Devices per group."""
        return tuple(group.size for group in self.groups)

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return sum(self.counts)
