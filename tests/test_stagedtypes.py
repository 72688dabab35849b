from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import autopart
from autopart import verbs
from autopart.errors import MismatchError
from autopart.planning.costing.memory import stage_facts
from autopart.profiling import kind
from autopart.schema.graph import Graph, Value, Weight, Work
from autopart.schema.job import Job
from autopart.stagedtypes import held_graph, stage_dtype, timed_graph
from tests.planning.problems import chain

BF16 = Work(family="gemm", dtype="bfloat16", num_calls=1, flops=10**9, traffic_bytes=1000)


def half_chain(*, training: bool, dtype: str = "bfloat16") -> Graph:
    """Two layers with a weight each, the second's tied to the first's too."""
    made = chain(2, training=training, saved_bytes=300)
    weights = tuple(
        Weight(name=f"w{index}", num_elements=50, bytes=100, dtype=dtype, is_buffer=False, trainable=training)
        for index in range(2)
    )
    layers = tuple(
        replace(layer, work=(replace(BF16, dtype=dtype),), weights=tuple(range(index + 1)))
        for index, layer in enumerate(made.layers)
    )
    return replace(made, weights=weights, layers=layers)


@pytest.mark.parametrize(("name", "dtype", "inference", "training"), [
    ("t4", "bfloat16", "float16", "float32"),
    ("t4", "float16", "", ""),
    ("t4", "float32", "", ""),
    ("a100-sxm-80gb", "bfloat16", "", ""),
    ("gtx-1080ti", "bfloat16", "float32", "float32"),
])  # fmt: skip
def test_a_kind_computes_in_a_type_that_it_has(name: str, dtype: str, inference: str, training: str) -> None:
    found = [stage_dtype(half_chain(training=trains, dtype=dtype), kind(name)) for trains in (False, True)]
    assert found == [inference, training]


def test_float16_holds_as_many_bytes_and_float32_twice_as_many() -> None:
    graph = half_chain(training=False)
    assert held_graph(graph, "") is graph
    half, full = held_graph(graph, "float16"), held_graph(graph, "float32")
    assert half.layers[1].peak_bytes == graph.layers[1].peak_bytes, "what crosses is of float32"
    assert [weight.bytes for weight in half.weights] == [100, 100, 100], "of two layers, so perhaps of two stages"
    assert [weight.bytes for weight in full.weights] == [100, 200, 200]
    assert [layer.weights for layer in full.layers] == [(0, 2), (0, 1, 2)]
    assert [layer.saved_bytes for layer in full.layers] == [2 * layer.saved_bytes for layer in graph.layers]
    own = half_chain(training=False, dtype="float32")
    assert [weight.bytes for weight in held_graph(own, "float32").weights] == [100, 100]


def crossed_in_half(*, training: bool) -> Graph:
    """Three layers that may be cut after the first; 10, 20, 40, 80 bytes cross, of which the inputs are indices."""
    made = chain(3, value_bytes=[10, 20, 40, 80], peak_bytes=10, saved_bytes=60, legal_cuts=(1,), training=training)
    values = tuple(
        replace(value, dtype="bfloat16" if value.producer >= 0 else "int64", saved_by=value.producer + 1)
        for value in made.values
    )
    return replace(made, values=values)


@pytest.mark.parametrize(("dtype", "wider"), [("float16", 1), ("float32", 2)])
def test_in_inference_what_leaves_a_stage_is_there_in_both_types(dtype: str, wider: int) -> None:
    """No stage ends with the second layer."""
    held = held_graph(crossed_in_half(training=False), dtype)
    assert [layer.peak_bytes for layer in held.layers] == [wider * 20 + 20, wider * 40, wider * 80 + 80]
    assert held.values == crossed_in_half(training=False).values
    skipping = replace(crossed_in_half(training=False), values=(
        *held.values, Value(name="skip", producer=0, consumers=(2,), bytes=7, shape=(), dtype="bfloat16",
                            differentiable=False),
    ))  # fmt: skip
    peaks = [layer.peak_bytes for layer in held_graph(skipping, dtype).layers]
    assert peaks == [wider * 27 + 27, wider * 40 + (wider - 1) * 7, wider * 80 + 80]


def test_in_training_what_enters_is_saved_beside_the_buffer_that_it_came_in() -> None:
    graph = crossed_in_half(training=True)
    held = held_graph(graph, "float32")
    before, now = (stage_facts(each, 1, 3) for each in (graph, held))
    assert before.saved == 2 * 60 - 20 and now.saved == 2 * 2 * 60
    assert now.incoming == 2 * before.incoming
    images = replace(graph, values=(replace(graph.values[0], dtype="bfloat16"), *graph.values[1:]))
    assert held_graph(images, "float32").values[0].bytes == 3 * 10


def test_in_training_a_copy_and_its_gradient_stand_beside_every_weight_once() -> None:
    full = held_graph(half_chain(training=True), "float32")
    assert [(weight.bytes, weight.trainable, weight.is_buffer) for weight in full.weights] == [
        (100, True, False), (100, True, False), (400, False, True), (400, False, True),
    ]
    assert [layer.weights for layer in full.layers] == [(0, 2), (0, 1, 2, 3)]


def test_work_is_done_in_the_type_with_its_traffic() -> None:
    graph = half_chain(training=False)
    works = [work for layer in timed_graph(graph, "float16").layers for work in layer.work]
    assert {(work.dtype, work.traffic_bytes) for work in works} == {("float16", 1000)}
    trained = timed_graph(half_chain(training=True), "float32").layers[0].work
    assert [(work.family, work.dtype, work.traffic_bytes) for work in trained] == [
        ("gemm", "float32", 2000), ("copy", "float32", 50 * (2 + 4)),
    ]


def test_groups_are_refused() -> None:
    for tensor, data in ((2, 1), (1, 2)):
        with pytest.raises(ValueError, match="has one device"):
            Job(batch=4, stage_dtype="auto", tensor_parallel=tensor, data_parallel=data)


def test_a_split_that_differs_for_its_type_is_not_looked_into_less(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_once, looks = verbs._plan_once, []

    def in_float16(*args: Any, **kwargs: Any) -> Any:
        looks.append(args)
        found, chosen, choice = plan_once(*args, **kwargs)
        return replace(found, stages=tuple(replace(each, dtype="float16") for each in found.stages)), chosen, choice

    def differs(*_: Any) -> Any:
        raise MismatchError("output 0 differs")

    monkeypatch.setattr(verbs, "_plan_once", in_float16)
    monkeypatch.setattr(verbs, "_checked", differs)
    model = nn.Linear(4, 4)
    with pytest.raises(MismatchError, match="output 0 differs; plan with --stage-dtype keep"):
        autopart.plan(model, (torch.rand(4, 4),), devices="2xt4")
    assert len(looks) == 1
