from __future__ import annotations

import pytest
import torch
from torch import nn

from autopart.errors import UsageError
from autopart.running.optimizers import OPTIMIZERS, make_optimizer
from autopart.schema.job import Optimizer


def test_every_optimizer_of_a_job_can_be_made() -> None:
    named = {*Optimizer.__args__} - {"none"}  # type: ignore[attr-defined]
    assert named == set(OPTIMIZERS)
    for name in named:
        assert make_optimizer(name, [nn.Parameter(torch.ones(2))]) is not None


def test_none_and_a_stage_without_trainable_weights_have_no_optimizer() -> None:
    assert make_optimizer("none", [nn.Parameter(torch.ones(2))]) is None
    assert make_optimizer("adam", []) is None


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="no optimizer is called 'lion'"):
        make_optimizer("lion", [nn.Parameter(torch.ones(2))])
