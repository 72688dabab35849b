"""What layers cost on devices and links: measured where they are here, estimated where they are not."""

from __future__ import annotations

from autopart.profiling.budget import Budget
from autopart.profiling.catalogue import kind, kind_in, kinds, link_kind, link_kinds
from autopart.profiling.cluster import read_cluster
from autopart.profiling.estimate import estimate
from autopart.profiling.here import devices_here
from autopart.profiling.links import measure_links
from autopart.profiling.measure import measure
from autopart.profiling.ownkinds import own_kinds
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
