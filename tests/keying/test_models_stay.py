"""A model that is spelled once has the key that it has when it is spelled each time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autopart.keying import model_key, models_stay


@pytest.fixture(autouse=True)
def in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # a worker of pytest-xdist has none


def key_of(model: nn.Module, batch: int) -> tuple[str, ...]:
    return model_key(model, (torch.rand(batch, 4),), {}, training=True, name="model")


def test_keys_are_the_same_within() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    plain = [key_of(model, batch) for batch in (2, 3)]
    with models_stay():
        within = [key_of(model, batch) for batch in (2, 3)]
        again = key_of(model, 2)
    assert within == plain
    assert again == plain[0] != plain[1]


def test_a_change_is_seen_where_nobody_promised_that_there_is_none() -> None:
    dropout = nn.Dropout(0.1)
    model = nn.Sequential(nn.Linear(4, 4), dropout)
    before = key_of(model, 2)
    with models_stay():
        assert key_of(model, 2) == before
    dropout.p = 0.2
    assert key_of(model, 2) != before
