from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from autopart.profiling.measuring.alone import layer_alone
from autopart.profiling.measuring.weights import PlacedWeights
from autopart.program import Program
from autopart.tracing import trace

CPU = torch.device("cpu")


def traced(model: nn.Module, *inputs: torch.Tensor, training: bool) -> tuple[Program, tuple[torch.Tensor, ...]]:
    program = trace(model, inputs, training=training)
    return program, program.flatten_inputs(inputs, {})


def test_forward_and_backward_lie_between_two_readings_each() -> None:
    program, inputs = traced(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.rand(2, 8), training=True)
    ticks = itertools.count()
    once = layer_alone(program, 1, inputs, PlacedWeights(program, CPU), CPU, lambda: float(next(ticks)))
    sample = once()
    assert (sample.forward_seconds, sample.backward_seconds) == (1.0, 1.0)
    assert sample.peak_bytes is None and sample.saved_bytes is None
    assert next(ticks) == 4


def test_a_model_without_weights_needs_only_those_of_the_layer() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    program, inputs = traced(model, torch.empty(2, 8, device="meta"), training=False)
    weights = PlacedWeights(program, CPU)
    layer_alone(program, 0, inputs, weights, CPU, lambda: 0.0)()
    assert sorted(weights) == ["0.bias", "0.weight"] and not any(weight.is_meta for weight in weights.values())


def test_buffers_are_copies_and_parameters_have_gradients_of_their_own() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8))
    program, inputs = traced(model, torch.rand(4, 8), training=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for index in range(len(program.graph.layers)):
        weights = PlacedWeights(program, CPU)
        layer_alone(program, index, inputs, weights, CPU, lambda: 0.0)()
        assert any(weight.grad is not None for weight in weights.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_allocator_of_a_card_tells_peak_and_saved_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopart.profiling.measuring.alone import _Allocated

    allocated = iter([100, 130])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 170)
    assert _Allocated(torch.device("cuda:0")).grown() == (70, 30)
