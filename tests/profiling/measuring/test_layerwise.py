from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from autopart.profiling.measuring.layerwise import layer_runner
from autopart.tracing import trace

WIDTH, BATCH = 8, 4


class Residual(nn.Module):
    """Gradients meet at a value, and a weight of a value's own shape gets the very tensor that the value gets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.before, self.after = (nn.Parameter(torch.randn(BATCH, WIDTH)) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x) + self.before
        y: torch.Tensor = self.norm(x + self.second(x).relu())
        return y + x + self.after


class Opaque(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        found: torch.Tensor = self.second(x)
        return x * 2 if x.sum().item() > 1e9 else found


@pytest.mark.parametrize("kind", [Residual, Opaque])
def test_layer_by_layer_the_gradients_are_the_models(kind: type[Residual]) -> None:
    torch.manual_seed(0)
    model, x = kind().train(), torch.randn(BATCH, WIDTH)
    program = trace(model, (x,), {}, training=True)
    weights = dict(model.named_parameters())
    layers = layer_runner(program, [x], weights, torch.device("cpu"), time.thread_time)
    forward, backward = layers()
    assert len(forward) == len(backward) == len(program.graph.layers)
    layers()  # a second run adds as much again
    found = {name: weight.grad for name, weight in weights.items()}
    model.zero_grad()
    output = model(x)
    output.backward(torch.ones_like(output))
    for name, weight in weights.items():
        assert weight.grad is not None
        torch.testing.assert_close(found[name], 2 * weight.grad, msg=name)
