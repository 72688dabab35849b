"""What devices hold of a graph, each kind in the type that it computes in."""

from __future__ import annotations

from autopart.planning.costing.remembering import per_graph
from autopart.schema.graph import Graph
from autopart.schema.problem import Candidate
from autopart.stagedtypes import held_graph

__all__ = ["held_by_any", "held_on"]

_held = per_graph(held_graph)


def held_on(candidate: Candidate, kind: str) -> Graph:
    """The candidate's graph with the bytes that a device of a kind holds of it."""
    return _held(candidate.graph, candidate.profile.kind(kind).dtype)


def held_by_any(candidate: Candidate) -> Graph:
    """The graph of the kind that holds most."""
    dtypes = {row.dtype for row in candidate.profile.kinds}
    return _held(candidate.graph, "float32" if "float32" in dtypes else "")
