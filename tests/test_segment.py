from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from autopart.segment import build_segment, retarget

META = torch.device("meta")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.zeros(3))
        self.shift: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.shift + torch.ones(3, device="cpu")


@pytest.fixture(scope="module")
def captured() -> fx.GraphModule:
    module = torch.export.export(Small(), (torch.zeros(3),), strict=False).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def _nodes(captured: fx.GraphModule) -> list[fx.Node]:
    return [node for node in captured.graph.nodes if node.op == "call_function"]


def test_weights_keep_names_and_identity(captured: fx.GraphModule) -> None:
    nodes, own = _nodes(captured), Small()
    segment = build_segment(
        nodes, layers=range(1, 3), inputs=["x"], outputs=[nodes[-1].name], weight_name=lambda target: target,
        weight=lambda name: getattr(own, name), device=torch.device("cpu"),
    )  # fmt: skip
    assert dict(segment.named_parameters()) == {"weight": own.weight}
    assert dict(segment.named_buffers()) == {"shift": own.shift}
    assert (segment.first, segment.last) == (1, 3)
    assert torch.equal(segment(torch.ones(3))[0], torch.full((3,), 2.0))


def test_a_device_in_the_code_becomes_the_segments(captured: fx.GraphModule) -> None:
    nodes = _nodes(captured)
    segment = build_segment(
        nodes, layers=range(1), inputs=["x"], outputs=[nodes[-1].name], weight_name=lambda target: target,
        weight=lambda name: getattr(Small(), name).to(META), device=META,
    )  # fmt: skip
    devices = [node.kwargs["device"] for node in segment.body.graph.nodes if "device" in node.kwargs]
    assert devices == [META]
    assert segment(torch.ones(3, device=META))[0].device == META
    assert "device(type='cpu')" in captured.code, "the captured graph itself must stay as it was"


def test_lifted_weights_come_last(captured: fx.GraphModule) -> None:
    nodes, own = _nodes(captured), Small()
    segment = build_segment(
        nodes, layers=range(1), inputs=["x"], outputs=[nodes[-1].name], lifted=["weight"],
        weight_name=lambda target: target, weight=lambda name: getattr(own, name), device=torch.device("cpu"),
    )  # fmt: skip
    assert segment.input_names == ("x", "weight")
    assert not list(segment.parameters())
    assert torch.equal(segment(torch.ones(3), torch.full((3,), 5.0))[0], torch.full((3,), 6.0))


def test_an_input_that_is_forgotten_is_an_error(captured: fx.GraphModule) -> None:
    nodes = _nodes(captured)
    with pytest.raises(AssertionError, match="x is no operator"):
        build_segment(
            nodes, layers=range(1), inputs=[], outputs=[nodes[-1].name], weight_name=lambda target: target,
            weight=lambda name: getattr(Small(), name), device=META,
        )  # fmt: skip


def test_regions_and_their_constants_move_too() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return x + torch.zeros(3, device="cpu") + torch.tensor([1.0, 2.0, 3.0])

    module = torch.export.export(Inner(), (torch.zeros(3),), strict=False).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    regions = [child for child in module.children() if isinstance(child, fx.GraphModule)]
    for region in regions:
        moved = retarget(region, META)
        assert "cpu" not in moved.code
        assert "cpu" in region.code
    assert len(regions) == 1
