from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import UsageError
from autopart.livebytes import LiveBytes
from autopart.running.microbatch import join_outputs, split_inputs, split_targets
from autopart.schema.graph import Graph, Layer, Value


def make_graph(batch_size: int, *shapes: tuple[int, ...]) -> Graph:
    values = tuple(
        Value(
            name=f"x{index}", producer=-1, consumers=(0,), bytes=1, shape=shape, dtype="float32", differentiable=False
        )
        for index, shape in enumerate(shapes)
    )
    layer = Layer(name="all", weights=(), work=(), saved_bytes=0, peak_bytes=0, signature="")
    return Graph(
        model="m", fingerprint="f", training=False, batch_size=batch_size, layers=(layer,), weights=(), values=values,
        legal_cuts=(),
    )


@given(st.integers(1, 6), st.integers(1, 4))
def test_splitting_and_joining_gives_the_batch_back(num_microbatches: int, size: int) -> None:
    value = torch.rand(num_microbatches * size, 3)
    graph = make_graph(size, (size, 3))
    chunks = split_inputs((value,), graph, num_microbatches)
    assert len(chunks) == num_microbatches
    assert torch.equal(join_outputs(chunks, graph, num_microbatches)[0], value)


def test_tensors_that_are_not_batched_go_to_every_microbatch() -> None:
    batched, scale = torch.rand(6, 2), torch.rand(5)
    chunks = split_inputs((batched, scale), make_graph(2, (2, 2), (5,)), 3)
    assert [chunk[0].shape for chunk in chunks] == [(2, 2)] * 3
    assert all(chunk[1] is scale for chunk in chunks)


def test_a_shape_that_fits_neither_way_is_refused() -> None:
    with pytest.raises(UsageError, match=r"input x0 has shape \(7, 2\), the plan is for \(6, 2\)"):
        split_inputs((torch.rand(7, 2),), make_graph(2, (2, 2)), 3)


def test_targets_are_cut_wherever_the_batch_lies_in_them() -> None:
    labels, boxes = torch.arange(4), torch.arange(8).view(4, 2)
    chunks = split_targets((labels, {"boxes": boxes, "weight": 0.5}), 4, 2)
    assert torch.equal(chunks[1][0], torch.tensor([2, 3]))
    assert torch.equal(chunks[0][1]["boxes"], boxes[:2])
    assert [chunk[1]["weight"] for chunk in chunks] == [0.5, 0.5]


def test_no_target_and_a_lone_target() -> None:
    assert split_targets(None, 4, 2) == ((), ())
    assert [chunk[0].tolist() for chunk in split_targets(torch.arange(4), 4, 2)] == [[0, 1], [2, 3]]


def test_scalar_outputs_are_averaged_and_constants_kept() -> None:
    constant = torch.arange(5)
    chunks = [(torch.tensor(1.0), constant), (torch.tensor(4.0), constant)]
    mean, kept = join_outputs(chunks, make_graph(2), 2)
    assert mean.item() == pytest.approx(2.5)
    assert torch.equal(kept, constant)


def test_joining_holds_one_chunk_beside_the_joined_output() -> None:
    live = LiveBytes()
    with live:
        joined = join_outputs((((torch.zeros(100) + index).view(1, 100),) for index in range(8)), make_graph(1), 8)[0]
    assert joined[:, 0].tolist() == list(range(8))
    assert live.peak_bytes <= 4 * (800 + 2 * 100 + 1)  # the joined output, a chunk and what it was made from
