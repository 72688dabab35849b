from __future__ import annotations

import pytest
import torch

from autopart.codecs import CODECS
from autopart.compression import Crossing, Traffic, crossings
from autopart.schema.codec import CODEC_NAMES, CodecName, is_compressible, wire_bytes
from autopart.schema.graph import Graph, Layer, Value

SHAPE = (4, 8, 64)


def value(name: str, shape: tuple[int, ...], dtype: str = "float32", differentiable: bool = True) -> Value:
    return Value(
        name=name, producer=0, consumers=(1,), bytes=1, shape=shape, dtype=dtype, differentiable=differentiable
    )


def graph_of(*values: Value, training: bool = True) -> Graph:
    layers = tuple(
        Layer(name=name, weights=(), work=(), saved_bytes=0, peak_bytes=0, signature="") for name in ("one", "two")
    )
    return Graph(
        model="by hand", fingerprint="", training=training, batch_size=4, layers=layers, weights=(), values=values,
        legal_cuts=(1,),
    )


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_values_and_gradients_pass_the_codec(name: CodecName) -> None:
    traffic = Traffic()
    crossing = Crossing(name, SHAPE, torch.float32, traffic=traffic, num_microbatches=2)
    sent = torch.randn(SHAPE, requires_grad=True)
    arrived = crossing.unpack(crossing.pack(sent * 1))
    gradient = torch.randn(SHAPE)
    torch.autograd.backward([arrived], [gradient])
    codec = CODECS.get(name)
    for before, after in ((sent.detach(), arrived.detach()), (gradient, sent.grad)):
        expected = codec.decode(codec.encode(before), SHAPE, torch.float32) if codec else before
        assert after is not None and torch.equal(after, expected)
    assert traffic.plain_bytes == 2 * sent.nbytes
    assert traffic.sent_bytes == 2 * wire_bytes(name, SHAPE, 4)


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_an_empty_wire_is_like_a_real_one(name: CodecName) -> None:
    crossing = Crossing(name, SHAPE, torch.float32, traffic=Traffic())
    example = crossing.wire_like(torch.empty(SHAPE, device="meta", requires_grad=True))
    wire = crossing.pack(torch.randn(SHAPE, requires_grad=True))
    assert (example.shape, example.dtype, example.requires_grad) == (wire.shape, wire.dtype, wire.requires_grad)
    assert example.is_meta
    assert not crossing.pack(torch.randn(SHAPE)).requires_grad


def test_what_topk_leaves_out_is_sent_in_later_steps() -> None:
    num_microbatches, num_steps = 2, 40
    crossing = Crossing("topk", SHAPE, torch.float32, traffic=Traffic(), num_microbatches=num_microbatches)
    sent = [torch.randn(SHAPE) for _ in range(num_microbatches)]
    gradients = [torch.randn(SHAPE) for _ in range(num_microbatches)]
    arrived, returned = ([torch.zeros(SHAPE) for _ in range(num_microbatches)] for _ in range(2))
    for _ in range(num_steps):
        for number in range(num_microbatches):
            leaf = sent[number].clone().requires_grad_()
            output = crossing.unpack(crossing.pack(leaf))
            torch.autograd.backward([output], [gradients[number]])
            assert leaf.grad is not None
            arrived[number] += output.detach() / num_steps
            returned[number] += leaf.grad / num_steps
    for wanted, found in zip([*sent, *gradients], [*arrived, *returned], strict=True):
        assert (found - wanted).norm() < 0.15 * wanted.norm()  # without feedback about 0.75


def test_inference_remembers_nothing() -> None:
    crossing = Crossing("topk", SHAPE, torch.float32, traffic=Traffic(), num_microbatches=1)
    question = torch.randn(SHAPE)
    with torch.no_grad():
        answers = [crossing.unpack(crossing.pack(question)) for _ in range(3)]
        crossing.pack(torch.randn(SHAPE))
        answers.append(crossing.unpack(crossing.pack(question)))
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_an_overflow_does_not_stay_in_the_memory() -> None:
    crossing = Crossing("topk", (2, 200), torch.float32, traffic=Traffic(), num_microbatches=1)
    bad = torch.full((2, 200), torch.inf, requires_grad=True)
    assert crossing.unpack(crossing.pack(bad)).isinf().any()
    assert crossing.unpack(crossing.pack(torch.ones(2, 200, requires_grad=True))).isfinite().all()


@pytest.mark.parametrize(
    ("given", "training", "codec", "expected"),
    [
        (value("x", (4, 100)), True, "int8", True),
        (value("x", (4, 100)), True, "none", False),
        (value("indices", (4, 100), "int64"), True, "int8", False),
        (value("mask", (4, 100), differentiable=False), True, "int8", False),
        (value("x", (4, 100), differentiable=False), False, "int8", True),
        (value("table", (100, 8)), False, "int8", False),
        (value("small", (4, 8)), True, "int8", False),
        (value("half", (4, 100), "bfloat16"), True, "fp16", False),
        (value("half", (4, 100), "bfloat16"), True, "int8", True),
    ],
)
def test_what_is_compressed(given: Value, training: bool, codec: CodecName, expected: bool) -> None:
    assert is_compressible(given, graph_of(given, training=training), codec) is expected


def test_the_values_of_a_cut_keep_their_order_and_each_its_codec() -> None:
    graph = graph_of(value("x", (4, 100)), value("indices", (4, 3), "int64"), value("y", (4, 100)))
    wanted: dict[str, CodecName] = {"x": "int8", "indices": "int8", "y": "none"}
    traffic = Traffic()
    found = crossings(graph, 1, wanted.__getitem__, traffic, 2)
    tensors = [torch.randn(4, 100), torch.ones(4, 3, dtype=torch.int64), torch.randn(4, 100)]
    wires = [crossing.pack(tensor) for crossing, tensor in zip(found, tensors, strict=True)]
    assert [wire.nbytes for wire in wires] == [wire_bytes("int8", (4, 100), 4), 96, 1600]
    assert wires[1] is tensors[1] and wires[2] is tensors[2]
    assert traffic.sent_bytes == sum(wire.nbytes for wire in wires)
    assert traffic.plain_bytes == sum(tensor.nbytes for tensor in tensors)
