"""Where nodes are merged: how much room is left on the node that a path is on.

A stage is on the node of the stage before only if it fits.  So nodes of the network know, beside the link class,
whether the path stays and how many devices are still free: a stage that enters a node of c devices with r of them
leaves c - r, one that stays with r' leaves r' fewer.  Every stage may also be the last on its node; then nothing is
kept in mind.  A node that is entered a second time is taken to be empty, which only makes bounds lower; row C11 counts
the nodes entered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autopart.planning.costing.nodes import Home
from autopart.planning.searching.instance import Arcs, Instance

__all__ = ["MOST_ROOM", "in_order", "with_rooms"]

MOST_ROOM = 8
"""devices of a node; of larger ones the room is not followed"""


def with_rooms(instance: Instance, homes: Sequence[Home]) -> Instance:
    """The instance with arcs for every room that they may find and leave, where groups are scattered over nodes."""
    followed = [group for group in instance.scattered if homes[group].widest <= MOST_ROOM]
    rooms = [(group, room) for group in followed for room in range(1, homes[group].widest)]
    if not rooms:
        return instance
    label = {key: instance.num_classes + number for number, key in enumerate(rooms)}
    source = instance.num_classes + len(rooms)
    arcs = instance.arcs
    arcs = replace(arcs, before=np.where(arcs.before == instance.num_classes, source, arcs.before))
    stays = np.isin(arcs.group, followed) & (arcs.room == 0)
    parts = [arcs.keep(~stays)]
    for group in followed:
        widest = homes[group].widest
        own, goes_on = arcs.group == group, arcs.last < instance.end
        for width in sorted(set(arcs.width[own].tolist())):
            alike = own & (arcs.width == width)
            if width < widest:
                parts.append(_leading(arcs.keep(alike & ~stays & goes_on), after=label[group, widest - width]))
            for room in range(width, widest):
                inside = arcs.keep(alike & stays)
                inside = replace(inside, before=np.full(len(inside), label[group, room]))
                parts.append(inside)
                if room > width:
                    parts.append(_leading(inside.keep(inside.last < instance.end), after=label[group, room - width]))
    return replace(instance, arcs=in_order(parts), num_labels=source)


def _leading(arcs: Arcs, *, after: int) -> Arcs:
    return replace(arcs, after=np.full(len(arcs), after))


def in_order(parts: Sequence[Arcs]) -> Arcs:
    """All arcs, sorted as ``Arcs`` says; of those that differ in nothing else by the class after."""
    merged = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Arcs.__slots__}
    order = np.lexsort([merged[name] for name in ("after", "way", "group", "last", "before", "first")])
    return Arcs(**{name: array[order] for name, array in merged.items()})
