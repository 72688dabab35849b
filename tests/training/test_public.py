"""``autopart.fit`` and ``autopart.load_checkpoint`` as users call them."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import autopart
from autopart.schema.job import Optimizer
from tests.training.models import BATCH, data, loss_fn, plan_of, program_of, seeded


def test_fit_trains_the_users_own_model(tmp_path: Path) -> None:
    model = seeded("tied")
    plan = plan_of(program_of(model))
    tokens, labels = data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    found = autopart.fit(
        model, (tokens[:BATCH],), plan=plan, data=lambda: (tokens, labels), loss_fn=loss_fn, targets=(labels[:BATCH],),
        steps=12, learning_rate=0.05, clip=1.0, checkpoints=tmp_path, progress=lambda *each: told.append(each),
    )
    assert found.losses[-1] is not None and found.losses[0] is not None and found.losses[-1] < found.losses[0]
    assert not torch.equal(model.embed.weight, before["embed.weight"])
    assert torch.equal(model.unused.weight, before["unused.weight"])
    assert told == [("training", step, 12) for step in range(1, 13)]
    other = seeded("tied", 7)
    assert autopart.load_checkpoint(tmp_path, other).step == 12
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_optimizer_that_the_plan_has_no_memory_for_is_told() -> None:
    model = seeded("chain")
    plan = plan_of(program_of(model))
    tokens, labels = data()
    cases: list[tuple[Any, Optimizer, int]] = [
        ("adam", "sgd", 1), (torch.optim.Adam, "none", 1), ("sgd", "adamw", 0),
    ]  # fmt: skip
    for optimizer, counted, num_told in cases:
        job = dataclasses.replace(plan.job, optimizer=counted)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            autopart.fit(
                model, (tokens[:BATCH],), plan=dataclasses.replace(plan, job=job), data=lambda: (tokens, labels),
                loss_fn=loss_fn, targets=(labels[:BATCH],), steps=1, optimizer=optimizer, verify=False,
            )
        found = [str(each.message) for each in told if "memory is for" in str(each.message)]
        assert len(found) == num_told, (optimizer, counted, found)


def test_wrong_words_and_plans_are_refused() -> None:
    model = seeded("chain")
    plan = plan_of(program_of(model))
    tokens, labels = data()
    with pytest.raises(autopart.UsageError, match="unexpected keyword argument 'stepps'"):
        autopart.fit(model, (tokens[:BATCH],), plan=plan, data=(tokens, labels), stepps=3, verify=False)
    with pytest.raises(autopart.UsageError, match="steps, accumulate and keep must be at least 1"):
        autopart.fit(model, (tokens[:BATCH],), plan=plan, data=(tokens, labels), steps=0, verify=False)
    shared = dataclasses.replace(plan.stages[0], devices=("cpu:0", "cpu:2"), tensor_parallel=2)
    more = (*plan.cluster.devices, dataclasses.replace(plan.cluster.devices[0], name="cpu:2"))
    wide = dataclasses.replace(
        plan, stages=(shared, plan.stages[1]), cluster=dataclasses.replace(plan.cluster, devices=more)
    )
    with pytest.raises(autopart.RunError, match=r"stage 0 is run by 2 devices together.*torchrun --nproc-per-node 3"):
        autopart.fit(
            model, (tokens[:BATCH],), plan=wide, data=(tokens, labels), loss_fn=loss_fn, steps=1, verify=False
        )
