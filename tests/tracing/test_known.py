"""Numbers that are read from tables of sizes while a model is traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

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


def test_other_sizes_are_refused_when_it_runs() -> None:
    model, (patches, grid) = _tower()
    parts = split(model, (patches, grid), {})
    parts(patches, grid.clone())
    with pytest.raises(RunError, match=r"was \[\[2, 3\], \[2, 2\]\] when it was planned and is \[\[2, 2\], \[2, 3\]\]"):
        parts(patches, grid.flip(0))


class Reading(nn.Module):
    """Reads one number of what a function makes of its table."""

    def __init__(self, number_of: Any) -> None:
        super().__init__()
        self.one, self.two, self.number_of = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), number_of

    def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x) * self.number_of(x, table))  # type: ignore[no-any-return]


def _written(x: torch.Tensor, table: torch.Tensor) -> int:
    sizes = table.clone()
    sizes[0] = (x > 0).sum()
    return int(sizes[0])


def _written_with_a_constant(x: torch.Tensor, table: torch.Tensor) -> int:
    sizes = table.clone()
    sizes[0] = 7
    return int(sizes.sum())


def _random(x: torch.Tensor, table: torch.Tensor) -> int:
    return int(table[0] + torch.randint(5, (), generator=None))


def _of_values(x: torch.Tensor, table: torch.Tensor) -> int:
    return int((x > 0).sum())


@pytest.mark.parametrize(
    ("number_of", "is_known"),
    [(_written, False), (_written_with_a_constant, True), (_random, False), (_of_values, False)],
)
def test_only_what_follows_from_sizes_is_known(number_of: Any, is_known: bool) -> None:
    torch.manual_seed(0)
    model, args = Reading(number_of).train(), (torch.randn(4, WIDTH), torch.tensor([3, 4]))
    program = trace(model, args, {}, training=True)
    assert (program.graph.tracer == "torch.export") == is_known
    assert_same(outcome(split(model, args, {}), model, args, {}), outcome(model, model, args, {}))


def test_a_batch_of_tokens_is_no_table_of_sizes() -> None:
    model, tokens = Reading(lambda x, table: int((table == 5).sum())).train(), torch.randint(9, (4, 16))
    assert trace(model, (torch.randn(4, WIDTH), tokens), {}, training=True).graph.tracer != "torch.export"
