"""The figures of a Graph against torch's own counts of an eager run."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from autopart.program import Program
from autopart.tracing import fingerprint, trace
from tests.zoo import BUILDERS, case, program


def _saved_bytes(runner: nn.Module, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Of an eager run, each storage once, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = runner(*args, **kwargs)
    assert result is not None
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            tensor.copy_(before[name])
    return sum(each.untyped_storage().nbytes() for pointer, each in kept.items() if pointer not in weights)


@pytest.mark.parametrize("name", BUILDERS)
def test_saved_bytes_are_what_autograd_keeps(name: str) -> None:
    """Of Llama and T5 as traced: transformers takes other paths through attention while it is traced."""
    each = case(name)
    each.model.train()
    runner = program(name, True).captured if name in ("llama", "t5") else each.model
    expected = _saved_bytes(runner, each.model, each.args, each.kwargs)
    assert sum(layer.saved_bytes for layer in program(name, True).graph.layers) == expected
    assert all(layer.saved_bytes == 0 for layer in program(name, False).graph.layers)


@pytest.mark.parametrize("name", ["resnet", "unet", "mlp"])
def test_flops_are_what_torch_counts(name: str) -> None:
    each = case(name)
    each.model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        each.model(*each.args, **each.kwargs)
    assert program(name, False).graph.flops == counter.get_total_flops() > 0


SQUARE = 2 * 16 * 16


@pytest.mark.parametrize(
    ("name", "num_scores"), [("gpt2", SQUARE), ("llama", SQUARE), ("bert", SQUARE), ("t5", 8 * 8 + 6 * 6 + 6 * 8)]
)
def test_attention_has_its_flops(name: str, num_scores: int) -> None:
    """torch counts none for the processor's fused kernel: two products per pair of positions, for 2 samples."""
    each = case(name)
    each.model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        each.model(*each.args, **each.kwargs)
    attention = sum(
        work.flops for layer in program(name, False).graph.layers for work in layer.work if work.family == "attention"
    )
    assert attention == 2 * (2 * 2 * num_scores * 32)
    assert program(name, False).graph.flops == counter.get_total_flops() + attention


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_graph_agrees_with_its_segments(name: str, training: bool) -> None:
    traced = program(name, training)
    graph, values = traced.graph, {value.name: value for value in traced.graph.values}
    used = {index for layer in graph.layers for index in layer.weights}
    read = _weights_read(traced)
    assert {graph.weights[index].name for index in used} == read
    for index, layer in enumerate(graph.layers):
        segment = traced.segment(index, index + 1, relay=False)
        assert all(values[each].producer < index and index in values[each].consumers for each in segment.input_names)
        assert all(values[each].producer == index for each in segment.output_names)
        assert {each for each, value in values.items() if index in value.consumers} == set(segment.input_names)
        assert {each for each, value in values.items() if value.producer == index} == set(segment.output_names)
        held = dict((*segment.named_parameters(), *segment.named_buffers()))
        assert set(held) == {graph.weights[position].name for position in layer.weights}
        assert layer.peak_bytes >= _through_bytes(traced, index)
    assert graph.legal_cuts == tuple(range(1, len(graph.layers)))


def _weights_read(traced: Program) -> set[str]:
    names = dict(traced.weight_names)
    nodes = [node for node in traced.captured.graph.nodes if node.op == "get_attr"]
    tensors = [node for node in nodes if not isinstance(_attribute(node), fx.GraphModule)]
    return {names[str(node.target)] for node in tensors}


def _attribute(node: fx.Node) -> Any:
    return attrgetter(str(node.target))(node.graph.owning_module)


def _through_bytes(traced: Program, index: int) -> int:
    """Inputs and outputs, memory that several of them share once."""
    traces = {node.name: node.meta["val"].untyped_storage() for node in traced.captured.graph.nodes if _is_tensor(node)}
    values = [v for v in traced.graph.values if v.producer == index or index in v.consumers]
    largest: dict[int, int] = {}
    for value in values:
        storage = traces[value.name]._cdata
        largest[storage] = max(largest.get(storage, 0), value.bytes)
    return sum(largest.values())


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def test_gradients_flow_where_they_are_needed() -> None:
    frozen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    frozen[0].requires_grad_(False)
    traced = trace(frozen, (torch.randn(2, 4),), training=True)
    assert [value.differentiable for value in traced.graph.values] == [False, False, True, True]
    assert traced.graph.layers[0].saved_bytes == 0
    assert traced.graph.layers[0].signature != traced.graph.layers[1].signature
    assert not any(value.differentiable for value in trace(frozen, (torch.randn(2, 4),), training=False).graph.values)


class Region(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.one(x) @ self.one.weight
        with torch.no_grad():
            x = self.two(x).exp() @ self.two.weight
        return x


def test_layers_with_other_regions_have_other_signatures() -> None:
    traced = trace(Region(), (torch.randn(2, 8),), training=True)
    assert len(traced.graph.layers) == len({layer.signature for layer in traced.graph.layers})


def test_a_tied_weight_is_described_once_and_used_twice() -> None:
    graph = program("gpt2", True).graph
    names = [weight.name for weight in graph.weights]
    assert "lm_head.weight" not in names
    shared = names.index("transformer.wte.weight")
    assert [layer.name for layer in graph.layers if shared in layer.weights] == ["transformer.wte", "lm_head"]
    assert graph.num_parameters == sum(weight.numel() for weight in case("gpt2").model.parameters())


def test_a_fingerprint_is_of_the_architecture() -> None:
    one, same, wider = (nn.Sequential(nn.Linear(4, width)) for width in (4, 4, 5))
    assert fingerprint(one) == fingerprint(same) != fingerprint(wider)
    assert fingerprint(one) != fingerprint(nn.ModuleList([nn.Linear(4, 4)]))
