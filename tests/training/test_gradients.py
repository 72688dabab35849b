from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autopart.training.gradients import LossScale, alone, clip_factor, squared_norm


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    for parameter in made[:2]:
        parameter.grad = torch.randn_like(parameter)
    return made


@pytest.mark.parametrize("most", [0.1, 100.0])
def test_clipping_is_torchs(most: float) -> None:
    ours, theirs = parameters(), parameters()
    norm = math.sqrt(squared_norm(ours[:1]) + squared_norm(ours[1:]))  # of two ranks
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, most)), rel=1e-6)
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine.grad is not None and other.grad is not None
        torch.testing.assert_close(mine.grad * clip_factor(norm, most), other.grad)
    assert squared_norm(ours[2:]) == 0.0, "no gradient"


def test_an_infinite_norm_is_not_clipped_to_nothing() -> None:
    assert clip_factor(math.inf, 1.0) == 1.0
    assert alone([1.0, 2.0]) == (1.0, 2.0)


def test_the_scale_is_torchs_grad_scalers() -> None:
    """The same scales as torch.amp.GradScaler's after the same overflows."""
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours = LossScale(growth_steps=3)
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflow in (True, False, False, False, True, False, False, False, False):
        theirs.scale(torch.ones(()))
        parameter.grad = torch.tensor([math.inf if overflow else 1.0])
        theirs.step(optimizer)
        theirs.update()
        ours = ours.after(overflow=overflow)
        assert ours.scale == theirs.get_scale()
