from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from autopart.errors import UsageError
from autopart.running.loss import Objective


def test_the_users_function_gets_output_and_targets() -> None:
    objective = Objective(lambda output, target, scale: scale * (output - target).square().mean())
    loss = objective(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), 2.0)
    assert loss.item() == pytest.approx(10.0)
    assert objective.notes == ()


@pytest.mark.parametrize("wrap", [lambda loss: SimpleNamespace(loss=loss), lambda loss: {"loss": loss}])
def test_without_one_the_outputs_own_loss_is_taken_and_noted(wrap: type) -> None:
    objective = Objective()
    assert objective(wrap(torch.tensor(3.0))).item() == 3.0
    assert "the output's own loss" in objective.notes[0]


def test_else_the_mean_of_squares_is_taken_and_noted() -> None:
    objective = Objective()
    output = {"a": torch.tensor([1.0, 3.0], requires_grad=True), "b": torch.tensor([7])}
    assert objective(output).item() == pytest.approx(5.0)
    assert "mean of the output's squares" in objective.notes[0]


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(UsageError, match="give a loss_fn"):
        Objective()(torch.tensor([1]))


@pytest.mark.parametrize("found", [torch.ones(2), 3.0])
def test_a_loss_that_is_no_scalar_tensor_is_refused(found: object) -> None:
    with pytest.raises(UsageError, match="the loss must be a scalar tensor"):
        Objective(lambda _: found)(torch.ones(1))  # type: ignore[arg-type, return-value]
