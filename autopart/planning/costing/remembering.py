"""What was computed of a graph, kept while it is likely to be asked for again.

Advice plans a problem anew many times with other times, links or caps: the graph, and so every stage's memory, is the
same object each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Concatenate, ParamSpec, TypeVar

from autopart.schema.graph import Graph

__all__ = ["per_graph"]

P = ParamSpec("P")
T = TypeVar("T")

MOST_GRAPHS = 8
MOST_RESULTS = 10_000
"""of one graph; then it begins anew"""


def per_graph(function: Callable[Concatenate[Graph, P], T]) -> Callable[Concatenate[Graph, P], T]:
    """The same function, which remembers its results for the last few graphs; its other arguments are hashable.

    Graphs are told apart by identity, as they never change and take long to compare.
    """
    known: OrderedDict[int, tuple[Graph, dict[Hashable, T]]] = OrderedDict()

    def remembered(graph: Graph, /, *args: P.args, **kwargs: P.kwargs) -> T:
        owner, results = known.setdefault(id(graph), (graph, {}))
        assert owner is graph, "a graph that is remembered is alive, so its number is its own"
        known.move_to_end(id(graph))
        if len(known) > MOST_GRAPHS:
            known.popitem(last=False)
        key = (args, tuple(sorted(kwargs.items())))
        if key not in results:
            if len(results) == MOST_RESULTS:
                results.clear()
            results[key] = function(graph, *args, **kwargs)
        return results[key]

    return remembered
