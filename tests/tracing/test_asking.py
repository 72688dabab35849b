"""Code that asks whether it is traced."""

from __future__ import annotations

import torch
from torch import nn

from autopart.tracing import trace
from tests.zoo import assert_same, outcome, split

WIDTH = 8


class Asking(nn.Module):
    """Rounds otherwise where it is exported, as libraries do for operators that some targets lack."""

    def __init__(self, *, is_branching: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.is_branching = is_branching

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        if torch.compiler.is_exporting() or torch.compiler.is_compiling():
            return self.two(x / 3)  # type: ignore[no-any-return]
        if self.is_branching and x.sum() > 1e9:
            return x
        return self.two(x * (1 / 3))  # type: ignore[no-any-return]


def test_it_goes_the_way_of_the_unsplit_model() -> None:
    model, x = Asking(), torch.randn(4, WIDTH)
    assert not trace(model, (x,), {}, training=True).graph.notes
    assert_same(outcome(split(model, (x,), {}), model, (x,), {}), outcome(model, model, (x,), {}))


def test_a_way_that_cannot_be_traced_is_not_taken_and_that_is_said() -> None:
    program = trace(Asking(is_branching=True), (torch.randn(4, WIDTH),), {}, training=False)
    (note,) = program.graph.notes
    assert note.code == "as-traced"
    assert "test_asking.py:" in note.where
    assert program.graph.tracer == "torch.export"


def test_the_questions_are_torchs_own_afterwards() -> None:
    before = torch.compiler.is_exporting, torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling
    trace(Asking(), (torch.randn(4, WIDTH),), {}, training=False)
    assert before == (torch.compiler.is_exporting, torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling)
