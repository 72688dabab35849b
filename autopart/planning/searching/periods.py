"""How often a stage comes round in training: its own boundary, its computing, and the boundary behind it.

Torch's Schedule1F1B fuses the send of a value with the receive of a gradient over the same boundary, and waits for
both; the stage behind does the same the other way round.  So the two meet once per micro-batch and neither computes
meanwhile: every boundary occupies both of its stages, forward and back.  The period of stage s is

    receive + return of its boundary  +  forward + backward  +  receive + return of the boundary behind it

and a step takes at most  sum of stage times + (M - 1) * the largest period  (a test simulates it); where the stages are
alike, that long.

GPipe waits for nothing that it sent, and has two phases, each a flow shop of identical jobs: a stage receives and
computes forward, then receives from behind and computes backward.  A step takes exactly

    sum of stage times  +  (M - 1) * (max of receive + forward  +  max of return behind + backward)

which is no less than with the largest of  receive + forward + return behind + backward  of one stage, its period here;
``phases`` closes what is between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.nodes import Home
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.rooms import in_order
from autopart.schema.device import Link

__all__ = ["with_periods"]

MOST_ARCS = 40_000
"""that the stage behind may be told apart in"""
MOST_NODES = 4000

Floats = npt.NDArray[np.float64]
Links = Sequence[Sequence[Link | None]]
Behind = Callable[[Link], Floats]
"""what every boundary over a link adds to the stage before it"""


def with_periods(
    instance: Instance, behind_seconds: Behind, links: Links, homes: Sequence[Home]
) -> Instance:
    """An instance of training whose arcs' ``seconds`` are periods.

    Where stages behind are reached over different links, an arc is made for each of their link classes, and nodes know
    the classes on both sides.  Where that would be too many, and where nodes are merged, the quickest link is charged:
    what is proven is then a lower bound.
    """
    num = instance.num_classes
    few = len(instance.arcs) * num <= MOST_ARCS and num * num * (instance.end + 1) <= MOST_NODES
    if num > 1 and few and not instance.scattered:
        return _told_apart(instance, behind_seconds, links)
    arcs = instance.arcs
    waits, goes_on = np.zeros(len(arcs)), arcs.last < instance.end
    stays = arcs.after > max(instance.link_classes)  # the stage behind is on the same node (``rooms``)
    followed = np.isin(arcs.group, arcs.group[stays])
    for group, home in enumerate(homes):
        own, leaves = (arcs.group == group) & goes_on, followed | (arcs.width == home.widest)
        elsewhere = [link for other, link in enumerate(links[group]) if other != group]
        elsewhere += [home.beyond] if group in instance.scattered else []
        inside = [links[group][group]]
        for chosen, some in ((stays, inside), (~stays & leaves, elsewhere), (~stays & ~leaves, elsewhere + inside)):
            waits[own & chosen] = _least(behind_seconds, some, instance.end + 1)[arcs.last[own & chosen]]
    charged = replace(arcs, seconds=arcs.seconds + waits)
    return replace(instance, arcs=charged.keep(np.isfinite(charged.seconds)))


def _least(behind_seconds: Behind, some: Sequence[Link | None], num: int) -> Floats:
    """Of every boundary, the least time over any of the links; inf if there is none."""
    found, links = np.full(num, math.inf), (link for link in some if link is not None)
    for link in {(each.latency_seconds, each.bandwidth_bytes_per_second): each for each in links}.values():
        found = np.minimum(found, behind_seconds(link))
    return found


def _told_apart(instance: Instance, behind_seconds: Behind, links: Links) -> Instance:
    """Nodes become (boundary, class before it, class behind it)."""
    num, arcs, classes = instance.num_classes, instance.arcs, np.asarray(instance.link_classes)
    source = num * num
    before = np.where(arcs.before == num, source, arcs.before * num + arcs.after)
    at_end = arcs.last == instance.end
    parts = [replace(arcs, before=before, after=arcs.after * (num + 1)).keep(at_end)]
    for behind in range(num):
        waits = np.full((instance.num_groups, instance.end + 1), math.inf)
        for group in range(instance.num_groups):
            some = [link for other, link in enumerate(links[group]) if classes[other] == behind and link is not None]
            waits[group] = _least(behind_seconds, some[:1], instance.end + 1)
        seconds = arcs.seconds + waits[arcs.group, arcs.last]
        part = replace(arcs, before=before, after=arcs.after * num + behind, seconds=seconds)
        parts.append(part.keep(~at_end & np.isfinite(seconds)))
    return replace(instance, arcs=in_order(parts), num_labels=source)
