"""On random graphs, no cut separates memory from its writers and readers, or what is no tensor from who reads it."""

from __future__ import annotations

import operator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from autopart.program import Program
from autopart.tracing import trace

WIDTH = 8
STEPS = ("linear", "view-write", "write", "chunk", "shape", "skip", "no-grad", "autocast", "buffer")


class Drawn(nn.Module):
    """A chain of steps, each of which reads what an earlier one made."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.linears = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in steps)
        self.register_buffer("state", torch.zeros(WIDTH))
        self.state: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [x * 1]
        for (step, back), linear in zip(self.steps, self.linears, strict=True):
            earlier = made[-1 - back % len(made)]
            made.append(self._stepped(step, linear(made[-1]), earlier, linear))
        return made[-1] + made[0]

    def _stepped(self, step: str, x: torch.Tensor, earlier: torch.Tensor, linear: nn.Module) -> torch.Tensor:
        if step == "view-write":
            earlier.view(-1)[:WIDTH].add_(x.detach().view(-1)[:WIDTH])
        elif step == "write":
            earlier.mul_(2)
        elif step == "chunk":
            one, two = earlier.chunk(2, -1)
            x = x + torch.cat([two, one], -1)
        elif step == "shape":
            x = x * earlier.shape[0]
        elif step == "skip":
            x = x + earlier
        elif step == "no-grad":
            with torch.no_grad():
                x = x + linear(earlier)
        elif step == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                x = linear(x)
            x = x.float()
        elif step == "buffer":
            self.state.add_(x.detach().mean(0))
            x = x + self.state
        return x


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 4)), min_size=3, max_size=7))
def test_cuts_separate_nothing_that_belongs_together(steps: list[tuple[str, int]]) -> None:
    x = torch.randn(4, WIDTH)
    model = Drawn(steps).eval()
    program = trace(model, (x,), training=False)
    _assert_memory_together(program)
    for value in program.graph.values:  # only tensors travel: no numbers, no tuples
        (node,) = (each for each in program.captured.graph.nodes if each.name == value.name)
        assert isinstance(node.meta["val"], torch.Tensor)
    before = model.state.clone()
    expected = model(x.clone())
    model.state.copy_(before)
    values: tuple[torch.Tensor, ...] = program.flatten_inputs((x.clone(),), {})
    for index in range(len(program.graph.layers)):  # a copy between any two layers, as a device boundary makes it
        values = program.segment(index, index + 1)(*(value.clone() for value in values))
    assert torch.equal(program.unflatten_outputs(values), expected)
    assert set(program.graph.legal_cuts) <= set(range(1, len(program.graph.layers)))


def _assert_memory_together(program: Program) -> None:
    """Layers that write into memory hold all who share that memory, by the storages of the trace, if it was theirs."""
    layer_of = {node: index for index, nodes in enumerate(program.layer_nodes) for node in nodes}
    for node, layer in layer_of.items():
        if node.target is operator.getitem:
            assert layer_of[node.all_input_nodes[0]] == layer
        if not _writes(node):
            continue
        storage = _storage(node.all_input_nodes[0])
        made = [each for each in layer_of if _storage(each) == storage]
        assert {layer_of[each] for each in made if layer_of[each] <= layer} == {layer}


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.untyped_storage()._cdata) if isinstance(value, torch.Tensor) else None
