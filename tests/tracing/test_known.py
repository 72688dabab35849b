"""Numbers that are read from tables of sizes while a model is traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autopart.errors import RunError
from autopart.tracing import trace
from tests.zoo import assert_same, outcome, split

WIDTH = 8


class Tower(nn.Module):
    """Cuts a row of patches into images by a table of their heights and widths, as vision towers do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        lengths = grid.prod(-1)
        weights = torch.repeat_interleave(1 / lengths, lengths)
        patches = self.one(patches) * weights[:, None]
        pieces = torch.split(patches, lengths.tolist())
        return self.two(torch.cat([piece.mean(0, keepdim=True) * int(grid[0, 0]) for piece in pieces]))  # type: ignore[no-any-return]


GRID = torch.tensor([[2, 3], [2, 2]])


def _tower() -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return Tower().train(), (torch.randn(10, WIDTH), GRID.clone())


def test_they_are_computed_beside_the_trace() -> None:
    model, args = _tower()
    program = trace(model, args, {}, training=True)
    assert program.graph.tracer == "torch.export"
    assert not program.graph.notes
    assert_same(outcome(split(model, args, {}), model, args, {}), outcome(model, model, args, {}))


def test_other_sizes_are_another_trace() -> None:
    model, (patches, grid) = _tower()
    parts = split(model, (patches, grid), {})
    for each in (grid, grid.flip(0), grid):
        assert torch.equal(parts(patches, each), model(patches, each))
        assert torch.equal(parts(grid=each, patches=patches), model(patches, each))


def test_a_program_refuses_other_sizes_than_it_was_traced_with() -> None:
    model, (patches, grid) = _tower()
    program = trace(model, (patches, grid), {}, training=True)
    stage = program.segment(0, len(program.graph.layers))
    stage(patches, grid.clone())
    with pytest.raises(RunError, match=r"was \[\[2, 3\], \[2, 2\]\] when it was planned and is \[\[2, 2\], \[2, 3\]\]"):
        stage(patches, grid.flip(0))


class Reading(nn.Module):
    """Reads one number of what a function makes of its table."""

    def __init__(self, number_of: Any) -> None:
        super().__init__()
        self.one, self.two, self.number_of = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), number_of

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x) * self.number_of(x, table))  # type: ignore[no-any-return]


def _written(x: torch.Tensor, table: torch.Tensor) -> int:
    sizes = table.clone()
    sizes[0, 0] = (x > 0).sum()
    return int(sizes[0, 0])


def _written_with_a_constant(x: torch.Tensor, table: torch.Tensor) -> int:
    sizes = table.clone()
    sizes[0, 0] = 7
    return int(sizes.sum())


def _one_of_one(x: torch.Tensor, table: torch.Tensor) -> float:
    return int(table[:1, 0]) + table[:1, 1].item() + len(range(table[0, 0])) + 0.5 * int((table > 3).any())


def _random(x: torch.Tensor, table: torch.Tensor) -> int:
    return int(table[0, 0] + torch.randint(5, (), generator=None))


def _of_values(x: torch.Tensor, table: torch.Tensor) -> int:
    return int((x > 0).sum())


@pytest.mark.parametrize(
    ("number_of", "is_known"),
    [
        (_written, False), (_written_with_a_constant, True), (_one_of_one, True), (_random, False),
        (_of_values, False),
    ],
)
def test_only_what_follows_from_sizes_is_known(number_of: Any, is_known: bool) -> None:
    torch.manual_seed(0)
    model, args = Reading(number_of).train(), (torch.randn(4, WIDTH), torch.tensor([[3, 4]]))
    program = trace(model, args, {}, training=True)
    assert (program.graph.tracer == "torch.export") == is_known
    assert_same(outcome(split(model, args, {}), model, args, {}), outcome(model, model, args, {}))


@pytest.mark.parametrize("shape", [(4, 16), (4, 1), (4,), (2, 4, 3)])
def test_tokens_labels_and_boxes_are_no_tables_of_sizes(shape: tuple[int, ...]) -> None:
    """They change from call to call, so what reads them stays as it is written."""
    model, numbers = Reading(lambda x, table: int((table == 5).sum())).train(), torch.randint(9, shape)
    x = torch.randn(4, WIDTH)
    assert trace(model, (x, numbers), {}, training=True).graph.tracer != "torch.export"
    parts = split(model, (x, numbers), {})
    assert_same(outcome(parts, model, (x, 0 * numbers), {}), outcome(model, model, (x, 0 * numbers), {}))


class Region(nn.Module):
    """Reads a number in a region with a graph of its own, whose inputs look like tables."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, table: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        x = checkpoint(lambda x, other, table: self.two(x) * int(other[0, 0]), x, other + 0, table, use_reentrant=False)
        return self.two(x)  # type: ignore[no-any-return]


def test_inputs_of_a_region_are_not_taken_for_those_of_the_model() -> None:
    torch.manual_seed(0)
    model, args = Region().train(), (torch.randn(4, WIDTH), torch.tensor([[3, 4]]), torch.tensor([[5, 6]]))
    assert_same(outcome(split(model, args, {}), model, args, {}), outcome(model, model, args, {}))
