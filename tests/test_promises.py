"""What the README promises, through the public names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import autopart
from tests.zoo import assert_same, case, outcome


@pytest.mark.usefixtures("quick_links")
@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("name", ["gpt2", "unet"])
def test_same_output_same_gradient_same_state_dict(name: str, mode: str) -> None:
    each = case(name)
    each.model.train(mode == "train")
    keys, parameters = list(each.model.state_dict()), list(each.model.parameters())
    words: dict[str, Any] = {"mode": mode, "stages": 2, "batch": 2, "microbatches": 1}
    divided = autopart.split(each.model, each.args, each.kwargs, devices="cpu:0,cpu:1", **words)
    assert each.model.training == (mode == "train")
    assert_same(
        outcome(each.model, each.model, each.args, each.kwargs), outcome(divided, each.model, each.args, each.kwargs)
    )
    assert len(divided.stitched(each.args, each.kwargs).segments) == 2
    assert list(divided.state_dict()) == keys
    assert all(one is other for one, other in zip(divided.parameters(), parameters, strict=True))
    single = tuple(tensor[:1] for tensor in each.args), {key: tensor[:1] for key, tensor in each.kwargs.items()}
    assert_same(outcome(each.model, each.model, *single), outcome(divided, each.model, *single))


def test_an_error_says_what_to_do() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    plan = autopart.plan(model, (torch.randn(2, 4),), devices="2xt4", stages=2)
    with pytest.raises(autopart.UsageError, match="is not here"):
        autopart.split(model, plan=plan)
