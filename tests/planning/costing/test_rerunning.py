"""Memory of stages whose layers are run again in the backward."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.planning.costing.memory import StageFacts, stage_facts
from autopart.planning.costing.parallel import Way, layer_times, way_facts, way_tables
from autopart.planning.costing.rerunning import beyond_inputs, held_from, rerun
from autopart.schema.graph import Graph
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, device, problems


def a_chain(*, skips: tuple[tuple[int, int, int], ...] = ()) -> Graph:
    return chain(5, value_bytes=100, saved_bytes=340, training=True, batch_size=4, skips=skips)


def test_what_comes_into_every_layer_is_held_once() -> None:
    passing = a_chain(skips=((0, 4, 7),))
    # layers 1 .. 3: what comes in is in the receive buffer, what goes out is kept to be sent, two values lie between
    assert (rerun(passing, 1, 4).held, stage_facts(passing, 1, 4, recompute=True).kept) == (200, 100)
    # of the whole model: four values, and the skip, once for all the layers that it passes by
    assert rerun(passing, 0, 5).held == 407


def test_a_layer_that_is_not_run_again_keeps_what_it_saves() -> None:
    graph = a_chain()
    layers = tuple(replace(layer, reruns=index != 2) for index, layer in enumerate(graph.layers))
    kept = replace(graph, layers=layers)
    assert held_from(kept)[:4] == (0, 1, None, 3)
    assert rerun(kept, 1, 4).held == 100 + 340
    assert beyond_inputs(kept) == [340, 340, 0, 340, 340]
    times = layer_times(candidate(kept, {"fast": [1.0] * 5}, 1), device("a"), None, Way(recompute=True), training=True)
    assert times.backward == (3.0, 3.0, 2.0, 3.0, 3.0)


def test_a_replay_does_not_save_its_inputs_again() -> None:
    graph = a_chain()
    values = tuple(replace(value, saved_by=1 if value.producer == 0 else None) for value in graph.values)
    assert beyond_inputs(replace(graph, values=values)) == [340, 240, 340, 340, 340]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Some layers are not run again, some values saved by a layer that makes or reads them."""
    found: Candidate = draw(problems(training=True))[0]
    graph, num_layers = found.graph, len(found.graph.layers)
    savers = [
        [None, *(each for each in (value.producer, *value.consumers) if 0 <= each < num_layers)]
        for value in graph.values
    ]
    return replace(
        graph,
        values=tuple(
            replace(value, saved_by=draw(st.sampled_from(some)))
            for value, some in zip(graph.values, savers, strict=True)
        ),
        layers=tuple(
            replace(layer, reruns=draw(st.booleans()), saved_bytes=draw(st.integers(0, 900))) for layer in graph.layers
        ),
        weights=tuple(replace(each, most_devices=draw(st.sampled_from([None, 1, 2, 4]))) for each in graph.weights),
    )


@settings(max_examples=60, deadline=None)
@given(graphs(), st.sampled_from([Way(recompute=True), Way(tensor=2), Way(tensor=2, data=2, recompute=True)]))
def test_tables_say_what_each_stage_says(graph: Graph, way: Way) -> None:
    boundaries = (0, *graph.legal_cuts, len(graph.layers))
    (table,) = way_tables(graph, boundaries, (way,))
    for a in range(len(boundaries)):
        for b in range(a + 1, len(boundaries)):
            facts = way_facts(graph, boundaries[a], boundaries[b], way)
            for field in fields(StageFacts):
                assert np.asarray(getattr(table, field.name))[a, b] == getattr(facts, field.name), field.name
