"""The device_map against accelerate itself: on fake GPUs for devices, on the processor for values."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart import tracing
from autopart.errors import UsageError
from autopart.exporting import to_accelerate
from autopart.exporting.dispatching import first_conflict
from autopart.program import Program
from autopart.schema.plan import Plan
from tests.exporting.plans import with_layers

accelerate = pytest.importorskip("accelerate")


class Block(nn.Module):
    """A residual block with a value beside the hidden state, as Llama's rotary tables are."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x * turn)
        grown: torch.Tensor = x + self.mlp(x)
        return grown


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.h, self.head = nn.Linear(4, 8), nn.ModuleList(Block() for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        turn = x.cos()
        for block in self.h:
            x = block(x, turn)
        return self.head(x)  # type: ignore[no-any-return]


class Skips(nn.Module):
    """A U-shaped model: its own code joins what lies on two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.ModuleList([nn.Linear(8, 8)] * 1)
        self.last = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down[0](x)
        second = self.up[0](self.down[1](first))
        return self.last(torch.cat([first, second], dim=1))  # type: ignore[no-any-return]


def traced(model: nn.Module, width: int) -> Program:
    return tracing.trace(model, (torch.rand(2, width),), training=False)


def planned(program: Program, *cuts: int) -> Plan:
    """A plan of the program, cut before these layers."""
    graph = program.graph
    edges = (0, *cuts, len(graph.layers))
    plan = with_layers(*(tuple(each.name for each in graph.layers[a:b]) for a, b in pairwise(edges)))
    stages = []
    for stage, (first, last) in zip(plan.stages, pairwise(edges), strict=True):
        used = sorted({index for layer in graph.layers[first:last] for index in layer.weights})
        stages.append(replace(stage, weights=tuple(graph.weights[index].name for index in used)))
    return replace(plan, stages=tuple(stages))


def boundary(program: Program, name: str) -> int:
    """Number of the first layer under this module."""
    return next(at for at, layer in enumerate(program.graph.layers) if layer.name.startswith(name))


def runs_on_fake_gpus(model: nn.Module, width: int, device_map: dict[str, Any]) -> None:
    """Dispatch by accelerate on fake devices, meta ones as GPUs want a driver; operands on two of them raise."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = type(model)()
        homes = {name: f"meta:{word}" for name, word in device_map.items()}
        for name, tensor in list(fake.named_parameters()):
            home = next(device for prefix, device in homes.items() if f"{name}.".startswith(f"{prefix}."))
            owner, _, leaf = name.rpartition(".")
            setattr(fake.get_submodule(owner), leaf, nn.Parameter(tensor.to(home), requires_grad=False))
        main = next(iter(homes.values()))
        accelerate.big_modeling.attach_align_device_hook_on_blocks(
            fake, execution_device={**homes, "": main}, offload=dict.fromkeys(homes, False)
        )
        fake(torch.empty(2, width, device=main))


def test_values_beside_the_hidden_state_may_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder()
    program = traced(model, 4)
    plan = planned(program, boundary(program, "h.2"))
    with pytest.raises(UsageError):  # from the plan alone that is not to be seen
        to_accelerate(replace(plan, transfers=plan.transfers * 2))
    device_map = json.loads(to_accelerate(replace(plan, transfers=plan.transfers * 2), program))["device_map"]
    assert device_map["h.1"] == 0 and device_map["h.2"] == 1 and device_map["head"] == 1
    runs_on_fake_gpus(model, 4, device_map)


def test_a_cut_inside_a_block_moves_to_its_end() -> None:
    model = Decoder()
    program = traced(model, 4)
    plan = planned(program, boundary(program, "h.1.mlp"))
    exact = {"embed": 0, "h.0": 0, "h.1.attn": 0, "h.1.mlp": 1, "h.2": 1, "h.3": 1, "head": 1}
    assert "h.1, which has parts on several devices" in first_conflict(program, exact)
    with pytest.raises(RuntimeError, match="devices"):
        runs_on_fake_gpus(model, 4, exact)
    document = json.loads(to_accelerate(plan, program))
    assert "the plan cuts block h.1" in " ".join(document["not_expressed"])
    runs_on_fake_gpus(model, 4, document["device_map"])


def test_what_a_parent_joins_must_be_on_one_device() -> None:
    model = Skips()
    program = traced(model, 8)
    plan = planned(program, boundary(program, "down.1"))
    with pytest.raises(UsageError, match=r"the model, which has parts on several devices, computes cat"):
        to_accelerate(plan, program)
    with pytest.raises(RuntimeError, match="devices"):
        runs_on_fake_gpus(model, 8, {"down.0": 0, "down.1": 1, "up": 1, "last": 1})


def test_outputs_are_equal_through_accelerates_dispatch() -> None:
    model = Decoder().eval()
    program = traced(model, 4)
    plan = planned(program, boundary(program, "h.1"), boundary(program, "h.3"))
    device_map = json.loads(to_accelerate(plan, program))["device_map"]
    x = torch.rand(2, 4)
    with torch.no_grad():
        expected = model(x)
        dispatched = accelerate.dispatch_model(model, dict.fromkeys(device_map, "cpu"), force_hooks=True)
        assert torch.equal(dispatched(x), expected)
    accelerate.utils.check_device_map(model, device_map)


def test_it_fits_where_infer_auto_device_map_does_not() -> None:
    """1200, 800, 1200 and 840 bytes under two caps of 2040: accelerate keeps room for the largest on the first GPU."""
    model = nn.Sequential(nn.Linear(30, 10, bias=False), nn.Linear(10, 20, bias=False), nn.Linear(20, 15, bias=False),
                          nn.Linear(15, 14, bias=False))
    sizes = [each.weight.numel() * 4 for each in model if isinstance(each, nn.Linear)]
    cap = max(sizes[0] + sizes[1], sizes[2] + sizes[3])
    theirs = accelerate.infer_auto_device_map(model, max_memory={0: cap, 1: cap, "cpu": 10**9})
    assert "cpu" in theirs.values(), theirs
    program = tracing.trace(model, (torch.rand(2, 30),), training=False)
    ours = json.loads(to_accelerate(planned(program, 2), program))["device_map"]
    held = {word: sum(size for name, size in zip("0123", sizes, strict=True) if ours[name] == word) for word in (0, 1)}
    assert set(ours) == set("0123") and max(held.values()) <= cap
