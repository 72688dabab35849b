"""What layers cost on devices and links: measured where they are here, estimated where they are not."""

from __future__ import annotations

from autopart.profiling.devices.catalogue import kind, kind_in, kinds, link_kind, link_kinds
from autopart.profiling.devices.cluster import read_cluster
from autopart.profiling.devices.here import devices_here
from autopart.profiling.devices.links import measure_links
from autopart.profiling.devices.ownkinds import own_kinds
from autopart.profiling.estimating.estimate import estimate
from autopart.profiling.measuring.budget import Budget
from autopart.profiling.measuring.measure import measure
from autopart.profiling.profiler import profile, profile_graph

__all__ = [
    "Budget",
    "devices_here",
    "estimate",
    "kind",
    "kind_in",
    "kinds",
    "link_kind",
    "link_kinds",
    "measure",
    "measure_links",
    "own_kinds",
    "profile",
    "profile_graph",
    "read_cluster",
]
