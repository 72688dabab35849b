from __future__ import annotations

import numpy as np

from autopart.planning import plan
from autopart.planning.costing.tables import choose_boundaries, crossing_at, crossing_bytes
from autopart.schema.job import Job
from tests.planning.problems import candidate, chain, cluster, device, link


def test_all_legal_cuts_are_boundaries_while_they_are_few() -> None:
    graph = chain(6, legal_cuts=(1, 4))
    assert choose_boundaries(graph, np.ones(6)) == (0, 1, 4, 6)


def test_many_layers_are_merged_at_the_thinnest_cuts() -> None:
    sizes = [10 if k % 5 == 0 else 1000 for k in range(1001)]
    graph = chain(1000, value_bytes=sizes)
    boundaries = choose_boundaries(graph, np.ones(1000), 100)
    assert len(boundaries) <= 100
    assert boundaries[0] == 0
    assert boundaries[-1] == 1000
    assert all(cut % 5 == 0 for cut in boundaries)


def test_a_long_chain_is_proven_at_every_cut() -> None:
    graph = chain(400)
    chosen = candidate(graph, {"fast": [1e-3] * 400}, 4)
    result = plan((chosen,), cluster(device("a"), device("b")), Job(batch=4))
    assert len(result.stages) == 2
    assert "all legal cuts" in result.proof.bound
    assert not any(warning.code == "merged-layers" for warning in result.warnings)


def test_crossing_agrees_with_the_graph() -> None:
    graph = chain(5, value_bytes=[1, 2, 3, 4, 5, 6], skips=((-1, 3, 100), (1, 5, 1000)))
    expected = [sum(value.bytes for value in graph.crossing(k)) for k in range(6)]
    assert crossing_bytes(graph).tolist() == expected


def test_one_message_per_value_and_its_gradient_back() -> None:
    graph = chain(3, value_bytes=100, skips=((0, 2, 50),))
    slow = link(latency_seconds=1.0, bandwidth=100.0)
    assert crossing_at(graph, (0, 2), gradients=False).seconds(slow).tolist() == [2.0, 3.5]
    assert crossing_at(graph, (0, 2), gradients=True).seconds(slow).tolist() == [2.0, 7.0]
