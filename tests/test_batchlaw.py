from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autopart.batchlaw import at_batch, equal_work
from autopart.schema.graph import Graph
from autopart.tracing import trace


def net() -> nn.Module:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 8), nn.Softmax(-1))


def traced(batch: int, *, training: bool = False) -> Graph:
    return trace(net().train(training), (torch.rand(batch, 4, 4, 4),), training=training).graph


@pytest.mark.parametrize("training", [False, True])
def test_it_is_what_a_trace_gives(training: bool) -> None:
    two, eight, four = (traced(batch, training=training) for batch in (2, 8, 4))
    found = at_batch(two, eight, 4)
    assert found is not None and found.batch_size == 4
    assert equal_work(found, four) and found != two


def test_equal_layers_have_equal_signatures_and_sizes_have_other_ones() -> None:
    two, eight = traced(2), traced(8)
    found, other = at_batch(two, eight, 4), at_batch(two, eight, 6)
    assert found is not None and other is not None
    assert len({layer.signature for layer in found.layers}) == len({layer.signature for layer in two.layers})
    assert {layer.signature for layer in found.layers}.isdisjoint(layer.signature for layer in other.layers)
    assert not equal_work(found, other) and not equal_work(two, eight)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 50))
def test_a_number_is_a_fixed_part_and_a_part_per_sample(one: int, other: int, wanted: int) -> None:
    if one == other:
        return
    found = at_batch(_graph(one, 100 + 7 * one), _graph(other, 100 + 7 * other), wanted)
    assert found == _graph(wanted, 100 + 7 * wanted, signature=found.layers[0].signature if found else "")


@pytest.mark.parametrize(("small", "large"), [(10, 5), (1, 10), (10, 14)])
def test_numbers_that_are_no_such_sum_give_nothing(small: int, large: int) -> None:
    assert at_batch(_graph(1, small), _graph(4, large), 2) is None


def test_models_that_differ_give_nothing() -> None:
    two, eight = traced(2), traced(8)
    assert at_batch(two, dataclasses.replace(eight, tracer="torch.fx"), 4) is None
    assert at_batch(two, dataclasses.replace(eight, layers=eight.layers[:-1], values=(), legal_cuts=()), 4) is None
    assert at_batch(two, two, 4) is None


def _graph(batch: int, saved_bytes: int, signature: str = "") -> Graph:
    graph = _FORM
    layer = dataclasses.replace(graph.layers[0], saved_bytes=saved_bytes, signature=signature)
    return dataclasses.replace(graph, batch_size=batch, layers=(layer,), values=())


_FORM = trace(nn.Linear(2, 2), (torch.rand(1, 2),), training=False).graph
