"""A plan, a run, and the next plan: what the run took is used, or it is said why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopart import running
from autopart.cli.main import main
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan
from autopart.schema.store import load_plan
from tests.paper import a_measurement

MODEL = """
import torch
from torch import nn
def build_model():
    return nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 8))
def example_inputs():
    return (torch.rand(4, 64),)
"""


def runs_at(factor: float, **changes: Any) -> Callable[..., Measurement]:
    """In place of a run: the stage takes ``factor`` times what was predicted, its last layer all of the difference."""

    def run(plan: Plan, source: str, **options: Any) -> Measurement:
        (stage,) = plan.stages
        seconds = factor * stage.forward_seconds
        layers = (*stage.layer_seconds[:-1], stage.layer_seconds[-1] + seconds - stage.forward_seconds)
        measured = a_measurement()
        made = replace(
            measured.stages[0], device="cpu:0", forward_seconds=seconds, backward_seconds=16e-6, layer_seconds=layers
        )
        return replace(measured, pace=1.0, stages=(made,), **changes)

    return run


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans the model, and gives the plan."""
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)

    def plan(*words: str) -> Plan:
        always = ["--devices", "cpu:0", "--microbatches", "1", "--no-verify", "-o", "plan.json"]
        assert main(["plan", "model.py", *always, *words]) == 0
        return load_plan("plan.json")

    return plan


def test_the_next_plan_uses_a_run_and_says_so(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = planned()
    monkeypatch.setattr(running, "run", runs_at(1.1))
    assert main(["run", "plan.json", "model.py", "-o", "run.json"]) == 0
    assert "uses what 1 of 1 stages took" in json.loads(Path("run.json").read_text())["lesson"]
    assert "The next plan of this model" in capsys.readouterr().out
    after = planned()
    assert after.stages[0].forward_seconds == pytest.approx(1.1 * before.stages[0].forward_seconds)
    assert "scaled to what runs took (x1.10 to x1.10, median of 1 run)" in after.origin.bases[0]
    capsys.readouterr()
    assert main(["explain", "plan.json"]) == 0
    worst = capsys.readouterr().out.partition("layers furthest off")[2].splitlines()
    assert worst[3].split()[0] == after.stages[0].layers[-1]
    assert planned("--refresh").origin.bases[0].find("scaled") == -1


def test_a_run_on_a_busy_machine_changes_nothing(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = planned()
    monkeypatch.setattr(running, "run", runs_at(2.88, core_share=0.35))
    assert main(["run", "plan.json", "model.py"]) == 0
    assert "learns nothing of this run: other processes were busy" in capsys.readouterr().out
    assert planned().stages[0].forward_seconds == before.stages[0].forward_seconds


def test_one_run_that_is_far_off_for_no_visible_reason_changes_little(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned()
    monkeypatch.setattr(running, "run", runs_at(2.88))
    assert main(["run", "plan.json", "model.py"]) == 0
    after = planned()
    assert after.stages[0].forward_seconds == pytest.approx(1.25 * before.stages[0].forward_seconds)
    assert "held back, since they took x2.88" in after.origin.bases[0]


def test_a_plan_within_a_budget_estimates_what_there_is_no_time_for(planned: Callable[..., Plan]) -> None:
    assert "1 of 3 different layers measured" in planned("--budget", "1us").origin.bases[0]
    assert "runs of the whole model" in planned("--budget", "10min").origin.bases[0]


def test_a_reserve_is_off_the_cap_and_master_weights_cost_memory(planned: Callable[..., Plan]) -> None:
    words = ("--devices", "1xt4", "--mode", "train", "--dtype", "float16")
    plain, kept = planned(*words), planned(*words, "--reserve", "t4=3GB", "--master-weights")
    assert plain.stages[0].capacity_bytes - kept.stages[0].capacity_bytes == 3_000_000_000
    half = plain.stages[0].memory.gradients
    assert (plain.stages[0].memory.optimizer, kept.stages[0].memory.optimizer) == (2 * half, 4 * half + 2 * half)
    assert plain.stages[0].memory.fragmentation > 22 * 2**20
