from __future__ import annotations

from dataclasses import replace

from autopart.planning.costing import remembering
from autopart.planning.costing.remembering import per_graph
from autopart.schema.graph import Graph
from tests.planning.problems import chain


def test_a_graph_is_looked_at_once_and_told_apart_by_identity() -> None:
    calls: list[tuple[int, int]] = []

    def size(graph: Graph, factor: int) -> int:
        calls.append((len(graph.layers), factor))
        return factor * len(graph.layers)

    known, graph = per_graph(size), chain(3)
    assert [known(graph, 2), known(graph, 2), known(graph, 3)] == [6, 6, 9]
    assert calls == [(3, 2), (3, 3)]
    assert known(replace(graph), 2) == 6, "equal, but another one"
    assert len(calls) == 3


def test_no_more_than_a_few_graphs_are_kept() -> None:
    calls = []
    known = per_graph(lambda graph: calls.append(id(graph)))
    graphs = [chain(2) for _ in range(remembering.MOST_GRAPHS + 1)]
    for graph in (*graphs, graphs[-1], graphs[0]):
        known(graph)
    assert len(calls) == len(graphs) + 1, "the first was forgotten, the last was not"
