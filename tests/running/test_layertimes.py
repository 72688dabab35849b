from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from autopart.running.launching.records import RankResult
from autopart.running.layertimes import NUM_PASSES, layer_seconds, with_layer_seconds
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.handmade import make_plan

CPU = torch.device("cpu")


class Residual(nn.Module):
    """Has a constant, and a value that passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.second(torch.relu(self.first(x) * torch.arange(8)))
        return result


MODEL = nn.Sequential(Residual(), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 2))


@pytest.mark.parametrize("training", [False, True])
def test_every_layer_has_a_time_of_its_own(training: bool) -> None:
    program = trace(MODEL, (torch.rand(4, 8),), training=training)
    num_layers = len(program.graph.layers)
    readings: list[float] = []

    def clock() -> float:
        readings.append(2.0 ** len(readings))
        return readings[-1]

    found = layer_seconds(program, 1, num_layers, weight=program.weight, device=CPU, clock=clock, speed=0.5)
    num_marks = num_layers  # one before the first of the layers, and one after each of them
    assert len(readings) == (1 + NUM_PASSES) * num_marks
    middle = readings[2 * num_marks : 3 * num_marks]  # the second pass that counts has the medians
    assert found == tuple(2 * (later - earlier) for earlier, later in itertools.pairwise(middle))


def a_result() -> RankResult:
    return RankResult(
        rank=0, device="cpu:0", step_seconds=(), forward_seconds=(), backward_seconds=(), optimizer_seconds=(),
        peak_bytes=0, memory_origin="", losses=(), notes=("one",), versions=(), pace_seconds=0.0,
    )


def test_layers_that_cannot_be_timed_are_noted() -> None:
    program = trace(MODEL, (torch.rand(4, 8),), training=False)
    plan: Plan = make_plan(program.graph, program.graph.legal_cuts[:1], num_microbatches=1)

    def lost(name: str) -> torch.Tensor:
        raise RuntimeError(f"{name} is gone")

    found = with_layer_seconds(a_result(), program, plan, weight=lost, device=CPU, clock=lambda: 0.0)
    assert found.layer_seconds == ()
    assert found.notes[0] == "one" and "is gone" in found.notes[1]
    timed = with_layer_seconds(a_result(), program, plan, weight=program.weight, device=CPU, clock=lambda: 0.0)
    assert timed.layer_seconds == (0.0,) * len(plan.stages[0].layers)
