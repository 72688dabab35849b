"""The Python verbs: what they verify, what they say about it, and what becomes of a trace that is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import autopart
from autopart import splitting
from autopart.errors import MismatchError
from autopart.schema.device import Cluster
from autopart.schema.plan import Plan
from autopart.schema.store import dump, parse

X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


class Counted(nn.Module):
    """A factor that grows with every call: any trace fixes it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(64, 64), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x) * self.calls  # type: ignore[no-any-return]


def _said(plan: Plan) -> list[tuple[str, str]]:
    return [(check.name, check.outcome) for check in plan.checks]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_plan_records_its_checks_and_leaves_the_model_alone(mode: str) -> None:
    model = _net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = autopart.plan(model, (X,), devices="2xt4", stages=2, mode=mode)
    assert _said(plan) == [("values", "passed"), ("devices", "passed")]
    assert ("6 gradients" in plan.checks[0].detail) == (mode == "train")
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert plan.model.tracer == "torch.export" and plan.model.opaque == ()
    assert parse(Plan, dump(plan)) == plan


def test_without_verification_nothing_is_checked() -> None:
    assert autopart.plan(_net(), (X,), devices="2xt4", verify=False).checks == ()


def test_a_plan_without_weights_says_that_values_were_not_compared() -> None:
    with torch.device("meta"):
        model = _net()
    plan = autopart.plan(model, (X.to("meta"),), devices="2xt4", stages=2)
    assert _said(plan) == [("values", "skipped"), ("devices", "passed")]
    assert "meta device" in plan.checks[0].detail


def test_a_module_that_no_trace_gets_right_is_planned_as_it_is_written() -> None:
    model = nn.Sequential(nn.Linear(64, 64), Counted(), nn.Linear(64, 64)).eval()
    plan = autopart.plan(model, (X,), devices="2xt4", stages=2)
    assert _said(plan)[0] == ("values", "passed")
    assert plan.model.tracer != "torch.export"
    divided = autopart.split(model, (X,), plan=dataclasses.replace(plan, cluster=_here(plan)))
    found = [divided(X) for _ in range(3)]
    assert torch.allclose(found[2] - found[1], found[1] - found[0], atol=1e-5)
    assert not torch.equal(found[0], found[1])


def _here(plan: Plan) -> Cluster:
    devices = tuple(dataclasses.replace(each, backend="cpu", torch_device="cpu") for each in plan.cluster.devices)
    return dataclasses.replace(plan.cluster, devices=devices)


def test_a_mismatch_that_stays_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise MismatchError("output 0 differs", layer="2")

    monkeypatch.setattr(splitting, "check_split", refuse)
    with pytest.raises(MismatchError, match="output 0 differs"):
        autopart.plan(_net(), (X,), devices="2xt4", stages=1)


def test_split_verifies_what_it_is_given() -> None:
    model = _net().eval()
    plan = autopart.plan(model, (X,), devices="cpu", verify=False)
    expected = model(X)
    assert torch.equal(autopart.split(model, (X,), plan=plan)(X), expected)
    with pytest.warns(UserWarning, match="could not check the split's values: no example inputs"):
        autopart.split(model, plan=plan)
    assert torch.equal(autopart.split(model, plan=plan, verify=False)(X), expected)


def test_pipeline_verifies_before_it_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _net()
    plan = autopart.plan(model, (X,), devices="cpu", mode="train", optimizer="none", verify=False)
    pipe = autopart.pipeline(model, (X,), plan=plan, loss_fn=nn.functional.mse_loss)
    assert float(pipe.step(X, target=torch.zeros(8, 8))) > 0

    def refuse(*args: object, **kwargs: object) -> None:
        raise MismatchError("output 0 differs")

    monkeypatch.setattr(splitting, "check_split", refuse)
    with pytest.raises(MismatchError):
        autopart.pipeline(model, (X,), plan=plan)
    autopart.pipeline(model, (X,), plan=plan, verify=False)


def test_training_is_planned_for_adamw_unless_an_optimizer_is_named() -> None:
    """As on the command line; its two states are twice the weights."""
    choices: tuple[dict[str, Any], ...] = ({}, {"optimizer": "adamw"}, {"optimizer": "none"})
    unnamed, named, none = (
        autopart.plan(_net(), (X,), devices="1xt4", mode="train", verify=False, **each) for each in choices
    )
    assert unnamed.job == named.job and unnamed.job.optimizer == "adamw" and none.job.optimizer == "none"
    assert unnamed.stages[0].memory.optimizer == 2 * unnamed.stages[0].memory.parameters
    assert none.stages[0].memory.optimizer == 0
    assert autopart.compare(_net(), (X,), devices=["1xt4"], mode="train").job.optimizer == "adamw"
    assert autopart.plan(_net(), (X,), devices="1xt4", verify=False).job.optimizer == "none"


def test_sets_of_devices_are_compared() -> None:
    found = autopart.compare(_net(), (X,), devices=["1xt4", "2xt4"])
    assert sorted(each.name for each in found.sets) == ["1xt4", "2xt4"]
    single = autopart.plan(_net(), (X,), devices="1xt4", verify=False)
    (row,) = (each for each in found.sets if each.name == "1xt4")
    assert row.step_seconds == single.prediction.step_seconds
