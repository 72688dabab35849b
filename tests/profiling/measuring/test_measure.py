from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from autopart.errors import DeviceError
from autopart.profiling.devices.here import cpu_core
from autopart.profiling.measuring.measure import measure
from autopart.program import Program
from autopart.schema.device import Device
from autopart.tracing import trace


class Net(nn.Module):
    """Two equal blocks, a batch norm with buffers, a tied weight, a mask that is no input's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(2))
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x) * torch.tril(torch.ones(6, 16))
        out: torch.Tensor = self.head(self.norm(x))
        return out


def ticking() -> Callable[[], float]:
    """A clock that goes on by one second whenever it is read."""
    count = itertools.count()
    return lambda: float(next(count))


def traced(*, training: bool) -> tuple[Program, tuple[torch.Tensor, ...]]:
    tokens = torch.randint(0, 50, (4, 6))
    program = trace(Net(), (tokens,), training=training)
    return program, program.flatten_inputs((tokens,), {})


def test_each_layer_is_timed_between_two_readings() -> None:
    program, inputs = traced(training=False)
    row = measure(program, inputs, cpu_core(0), clock=ticking())
    assert row.forward_seconds == (1.0,) * len(program.graph.layers)
    assert row.backward_seconds == row.optimizer_seconds == (0.0,) * len(program.graph.layers)
    assert (row.origin, row.kind) == ("measured", "cpu-1t")
    assert "1 thread," in row.basis


def test_training_times_backward_and_every_weight_once() -> None:
    program, inputs = traced(training=True)
    row = measure(program, inputs, cpu_core(0), optimizer="adamw", clock=ticking())
    assert row.backward_seconds == (1.0,) * len(program.graph.layers)
    names = [layer.name for layer in program.graph.layers]
    assert row.optimizer_seconds[names.index("embed")] == 1.0
    assert row.optimizer_seconds[names.index("head")] == 0.0  # its weight is the embedding's


def test_model_is_left_as_it_was() -> None:
    program, inputs = traced(training=True)
    model = program.module
    model.head.weight.grad = gradient = torch.ones(50, 16)  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    threads = torch.get_num_threads()
    measure(program, inputs, cpu_core(0), optimizer="sgd", clock=ticking())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.head.weight.grad is gradient  # type: ignore[union-attr]
    assert all(p.grad is None for name, p in model.named_parameters() if name != "embed.weight")
    assert torch.get_num_threads() == threads


def test_layers_of_one_signature_have_one_time() -> None:
    program, inputs = traced(training=False)
    row = measure(program, inputs, cpu_core(0))
    times: dict[str, set[float]] = {}
    for layer, seconds in zip(program.graph.layers, row.forward_seconds, strict=True):
        times.setdefault(layer.signature, set()).add(seconds)
    assert all(len(each) == 1 for each in times.values())
    assert all(seconds > 0 for seconds in row.forward_seconds)


def test_a_model_without_weights_is_measured_on_random_ones() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    inputs = torch.empty(2, 8, device="meta")
    program = trace(model, (inputs,), training=False)
    row = measure(program, (inputs,), cpu_core(0), clock=ticking())
    assert row.forward_seconds == (1.0, 1.0)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_absent_devices_are_refused() -> None:
    program, inputs = traced(training=False)
    absent = Device(
        name="t4:0", kind="t4", node="local", memory_bytes=10**9, memory_origin="data sheet", backend="absent"
    )
    with pytest.raises(DeviceError, match="t4:0 is not here"):
        measure(program, inputs, absent)
