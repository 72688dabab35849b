"""``autopart train``: what it says, and a sample of the fault drill (tests/benchmarks/faults.py) through it."""

from __future__ import annotations

import dataclasses
import json
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from autopart.cli.main import main
from autopart.modelsource import load
from autopart.schema.store import save_plan
from autopart.training import load_checkpoint
from tests.benchmarks.drillmodel import BATCH, data
from tests.benchmarks.drillmodel import loss_fn as drill_loss
from tests.benchmarks.faults import SOURCE, Signaller, drill_plan

STEPS, KILLED_AT = 12, 8


@pytest.fixture
def plan_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    save_plan(drill_plan(), tmp_path / "plan.json")
    return str(tmp_path / "plan.json")


def unsplit_losses() -> list[float]:
    """By plain torch: samples in their order."""
    model = load(SOURCE).model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens, labels = data()
    losses = []
    for step in range(STEPS):
        rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(tokens)
        optimizer.zero_grad()
        loss = drill_loss(model(tokens[rows]), labels[rows])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.timeout(900)  # 35 s of processor time; on a busy machine that is minutes
def test_a_rank_that_is_killed_costs_no_step_and_no_sample(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    killer = Signaller(tmp_path, kept / "metrics.jsonl", 1, KILLED_AT, signal.SIGKILL)
    killer.start()
    words = ["--data", f"{SOURCE}:data", "--steps", str(STEPS), "--lr", "0.01", "--clip", "1", "--no-shuffle"]
    words += ["--checkpoints", str(kept), "--checkpoint-every", "5", "--elastic"]
    assert main(["train", plan_file, SOURCE, *words, "--json", "-o", str(tmp_path / "o.json")]) == 0
    assert killer.sent
    output = capsys.readouterr()
    assert "was killed by SIGKILL" in output.err and "going on after step 5" in output.err
    found = json.loads(output.out)
    assert found == json.loads((tmp_path / "o.json").read_text())
    assert found["losses"] == pytest.approx(unsplit_losses(), rel=1e-5)
    (recovery,) = found["recoveries"]
    assert recovery["devices"] == ["cpu:0"] and recovery["resumed_from_step"] == 5
    lines = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["samples"] for line in lines] == [BATCH * step for step in range(1, STEPS + 1)]
    assert load_checkpoint(kept, load(SOURCE).model).step == STEPS
    assert sorted(path.name for path in kept.iterdir()) == ["metrics.jsonl", "step-00000010", "step-00000012"]
    assert not list(tmp_path.glob("autopart-train-*")), "nothing else is left behind"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--elastic"], "--elastic goes on from checkpoints; give --checkpoints DIR"),
        (["--lr", "-1"], "the learning rate must be positive; see `autopart train --help`"),
        (["--hang-timeout", "soon"], "soon"),
    ],
)
def test_wrong_usage_has_exit_code_2(
    words: list[str], message: str, plan_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", plan_file, SOURCE, "--data", f"{SOURCE}:data", "--steps", "3", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_plan_without_an_optimizer_is_said_to_have_none(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = drill_plan()
    save_plan(dataclasses.replace(plan, job=dataclasses.replace(plan.job, optimizer="none")), tmp_path / "none.json")
    assert main(["train", str(tmp_path / "none.json"), SOURCE, "--data", "x.npy", "--steps", "3"]) == 2
    assert "is planned without an optimizer; give --optimizer" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "train"])
def test_receives_are_posted_early_by_a_whole_number(
    command: str, plan_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data_words = ["--data", f"{SOURCE}:data", "--steps", "3"] if command == "train" else []
    assert main([command, plan_file, SOURCE, *data_words, "--prefetch", "-1"]) == 2
    assert "--prefetch -1 is below 0; give auto or 0 or more" in capsys.readouterr().err
    assert main([command, plan_file, SOURCE, *data_words, "--prefetch", "soon"]) == 2
    assert "--prefetch 'soon' is neither auto nor a whole number" in capsys.readouterr().err
