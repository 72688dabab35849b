"""Random numbers that decide nothing do not keep a model from being looked into."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from autopart.tracing import trace
from tests.zoo import assert_same, outcome, split

WIDTH = 4
NUMBERS: dict[str, Callable[[], object]] = {
    "torch": lambda: torch.rand([]),
    "random": lambda: random.uniform(0, 1),
    "numpy": lambda: np.random.random(),
}


class Encoder(nn.Module):
    """Drops layers at random, as encoders of transformers do."""

    def __init__(self, number: Callable[[], object], probability: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.number, self.probability = number, probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            number = self.number()
            if self.training and number < self.probability:  # type: ignore[operator]
                continue
            x = layer(x)
        return x


def _seed() -> None:
    random.seed(5)
    np.random.seed(5)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.0, False), (0.5, False)])
@pytest.mark.parametrize("name", NUMBERS)
def test_layer_drop_that_drops_nothing_is_traced_through(name: str, probability: float, training: bool) -> None:
    model, x = Encoder(NUMBERS[name], probability).train(training), torch.randn(3, WIDTH)
    _seed()
    state = random.getstate()
    traced = trace(model, (x,), training=training)
    assert traced.graph.tracer == "torch.export" and len(traced.graph.layers) == 4
    assert random.getstate() == state
    divided = split(model, (x,), {})
    _seed()
    expected, after = outcome(model, model, (x,), {}), (random.random(), np.random.rand())
    _seed()
    assert_same(expected, outcome(divided, model, (x,), {}))
    assert (random.random(), np.random.rand()) == after


@pytest.mark.parametrize("name", NUMBERS)
def test_layer_drop_that_drops_layers_runs_as_it_is_written(name: str) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Encoder(NUMBERS[name], 0.5), nn.Linear(WIDTH, 9 * WIDTH)).train()
    graph = trace(model, (torch.randn(3, WIDTH),), training=True).graph
    assert [note.message.partition(" ")[0] for note in graph.notes] == ["1"]


@pytest.mark.parametrize("use", [lambda number: number * 2, float, lambda number: number == 0.5, str])
def test_any_other_use_of_a_random_number_is_refused(use: Callable[[object], object]) -> None:
    class Using(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + len(str(use(random.random())))

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Using(), nn.Linear(WIDTH, WIDTH)).eval()
    notes = trace(model, (torch.randn(3, WIDTH),), training=False).graph.notes
    assert len(notes) == 1 and "random() draws another number at every call" in notes[0].message
