"""torch.vmap in a model: its operators are in the graph, and what would get lost there is not looked into."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autopart.tracing import trace
from tests.zoo import assert_same, outcome, split

WIDTH = 4
Row = torch.Tensor


class Mapping(nn.Module):
    """A function of rows, mapped over a batch, that reads weights and tensors around it."""

    def __init__(self, function: Callable[[Row, Row], Row], randomness: str = "error") -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.function, self.randomness = function, randomness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, weight = self.first(x), self.last.weight
        mapped = torch.vmap(lambda row: self.function(row, weight[0]), randomness=self.randomness)(hidden)
        return self.last(mapped)  # type: ignore[no-any-return]


def _nested(row: Row, weight: Row) -> Row:
    places = torch.arange(WIDTH, device=row.device)
    mask = torch.vmap(torch.vmap(lambda i, j: i <= j, (None, 0)), (0, None))(places, places)
    return torch.where(mask, row * weight, 0.0).sum(-1)


TRANSPARENT: dict[str, Callable[[Row, Row], Row]] = {
    "closure": lambda row, weight: (row * weight).softmax(0) * row.new_ones(()),
    "nested": _nested,
    "dot": lambda row, weight: row * torch.dot(row, weight),
    "detached": lambda row, weight: row * row.detach().exp() + weight,
    "indexed": lambda row, weight: row[torch.tensor([0, 0, 1, 2])] * weight,
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_the_operators_of_a_mapped_function_are_in_the_graph(name: str) -> None:
    torch.manual_seed(0)
    model, x = Mapping(TRANSPARENT[name]).eval().requires_grad_(False), torch.randn(3, WIDTH)
    traced = trace(model, (x,), training=False)
    assert traced.graph.tracer == "torch.export" and len(traced.graph.layers) >= 2
    assert not any("batch_dim" in node.name or "vmap" in node.name for node in traced.captured.graph.nodes)
    assert_same(outcome(model, model, (x,), {}), outcome(split(model, (x,), {}), model, (x,), {}))


def test_random_numbers_in_a_mapped_function_are_drawn_anew_at_every_call() -> None:
    model, x = Mapping(lambda row, weight: row + torch.randn_like(row) * weight, "different"), torch.randn(3, WIDTH)
    divided = split(model.eval().requires_grad_(False), (x,), {})
    for _ in range(2):
        assert_same(outcome(model, model, (x,), {}), outcome(divided, model, (x,), {}))


def _without_gradient(row: Row, weight: Row) -> Row:
    with torch.no_grad():
        scale = row.exp()
    return row * scale * weight


def _in_half(row: Row, weight: Row) -> Row:
    with torch.autocast("cpu", torch.bfloat16):
        return (row[None] @ weight[:, None]).float()[0] * row


def _recomputed(row: Row, weight: Row) -> Row:
    return checkpoint(lambda x: (x * weight).exp(), row, use_reentrant=False)  # type: ignore[no-any-return]


OPAQUE: dict[str, Callable[[Row, Row], Row]] = {
    "no_grad": _without_gradient,
    "detached": TRANSPARENT["detached"],
    "autocast": _in_half,
    "checkpoint": _recomputed,
}


@pytest.mark.parametrize("name", OPAQUE)
def test_what_would_get_lost_is_not_looked_into(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Mapping(OPAQUE[name]), nn.Linear(WIDTH, WIDTH)).train()
    x = torch.randn(3, WIDTH)
    notes = trace(model, (x,), training=True).graph.notes
    assert len(notes) == 1 and "would get lost" in notes[0].message
    assert_same(outcome(model, model, (x,), {}), outcome(split(model, (x,), {}), model, (x,), {}))
