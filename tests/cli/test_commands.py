"""The commands for real, on devices that are not here, so that nothing is measured and nothing is slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autopart.cli.main import main
from autopart.modelsource import load as load_source
from autopart.schema.store import load_plan, load_profile

MODEL = """
import torch
from torch import nn
def build_model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
def example_inputs():
    return (torch.rand(8, 64),)
def example_targets():
    return (torch.rand(8, 8),)
def loss_fn(output, target):
    return nn.functional.mse_loss(output, target)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "small.py"
    path.write_text(MODEL)
    return str(path)


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_plan_explain_verify_report(model: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, trace = str(tmp_path / "plan.json"), tmp_path / "trace.json"
    assert main(["plan", model, "--devices", "2xt4", "--stages", "2", "--mode", mode, "--batch", "16", "-o", file]) == 0
    plan = load_plan(file)
    assert plan.job.batch == 16 and plan.job.mode == mode and len(plan.stages) == 2
    assert [(check.name, check.outcome) for check in plan.checks] == [("values", "passed"), ("devices", "passed")]
    assert capsys.readouterr().out.startswith(plan.verdict)
    assert main(["explain", file]) == 0
    assert "bottleneck" in capsys.readouterr().out
    assert main(["verify", file, model]) == 0
    assert "2 stages and the unsplit model agree" in (text := capsys.readouterr().out)
    assert ("6 gradients" in text) == (mode == "train")
    assert main(["verify", file, model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_stages"] == 2
    assert main(["report", file, "--trace", str(trace)]) == 0
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    ends = max(event["ts"] + event["dur"] for event in events)
    assert ends == pytest.approx(plan.prediction.step_seconds * 1e6)


def test_the_same_words_give_the_same_plan(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for _ in range(2):
        assert main(["plan", model, "--devices", "1xt4,1xl4", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        document["proof"].pop("solve_seconds")
        documents.append(document)
    assert documents[0] == documents[1]


def test_export_of_a_real_plan(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "plan.json")
    assert main(["plan", model, "--devices", "2xt4", "--stages", "2", "-o", file]) == 0
    plan = load_plan(file)
    capsys.readouterr()
    assert main(["export", file, "--to", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 1 + plan.model.num_layers
    assert main(["export", file, "--to", "torch"]) == 0
    assert list(json.loads(capsys.readouterr().out)["split_spec"]) == [plan.stages[1].layers[0]]


def test_trace_and_profile(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", model, "--mode", "train", "--json"]) == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["training"] and graph["batch_size"] == 8 and len(graph["layers"]) == 3
    file = str(tmp_path / "profile.json")
    assert main(["profile", model, "--devices", "1xt4", "--batch", "4", "-o", file]) == 0
    profile = load_profile(file)
    assert profile.batch_size == 4 and len(profile.kind("t4").forward_seconds) == 3
    assert "t4 forward" in capsys.readouterr().out


def test_devices_here_and_in_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["here"] and "t4" in {kind["name"] for kind in found["catalogue"]}
    assert main(["devices"]) == 0
    assert "rtx-4090" in capsys.readouterr().out
    assert main(["devices", "show", "t4"]) == 0
    assert "confidence" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code", "message"), [
    (["--devices", "2xt4", "--max-memory", "t4=20kB"], 3, "short by"),
    (["--devices", "2xt44"], 2, "t44"),
    (["--devices", "2xt4", "--batch", "8", "--microbatches", "3"], 2, "does not divide into 3"),
    (["--devices", "2xt4", "--gap", "1"], 2, "gap"),
    (["--devices", "2xt4", "--max-memory", "t4=lots"], 2, "lots"),
    (["--cluster", "nowhere.yaml"], 2, "nowhere.yaml"),
])
def test_what_cannot_be_planned(
    model: str, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", model, *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("autopart: error: ") and message in err and "Traceback" not in err


def test_a_plan_of_another_model_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = str(tmp_path / "plan.json"), tmp_path / "other.py"
    assert main(["plan", model, "--devices", "2xt4", "-o", file]) == 0
    other.write_text(MODEL.replace("64, 8)", "64, 9)"))
    assert main(["verify", file, str(other)]) == 2
    assert "the plan is for another model" in capsys.readouterr().err


def test_a_model_that_cannot_be_traced_exits_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "branching.py"
    path.write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n"
        "        raise ValueError('never')\nbuild_model = Net\ndef example_inputs(): return (torch.rand(2, 2),)\n"
    )
    assert main(["plan", str(path), "--devices", "2xt4"]) == 4
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("quick_links")
def test_run_for_real(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, measured = str(tmp_path / "plan.json"), tmp_path / "run.json"
    words = ["--devices", "cpu:0,cpu:1", "--stages", "3", "--schedule", "interleaved", "--mode", "train"]
    words += ["--optimizer", "sgd"]
    assert main(["plan", model, *words, "--microbatches", "4", "-o", file]) == 0
    assert load_plan(file).ranks == (0, 1, 0)
    assert main(["run", file, model, "--steps", "2", "--warmup", "1", "-o", str(measured)]) == 0
    out = capsys.readouterr().out
    assert "predicted" in out and "unsplit on cpu:" in out
    document = json.loads(measured.read_text())
    assert len(document["step_seconds"]) == 2
    assert document["losses"] == pytest.approx(unsplit_losses(model, 3)[1:], rel=1e-5)
    assert document["schedule"] == "interleaved"
    stages = document["stages"]
    assert [stage["device"] for stage in stages] == ["cpu:0", "cpu:1", "cpu:0"]
    assert all(stage["forward_seconds"] > 0 and stage["backward_seconds"] > 0 for stage in stages)
    assert [stage["peak_bytes"] > 0 for stage in stages] == [True, True, False]
    assert stages[2]["memory_origin"] == "in that of stage 0"


def unsplit_losses(model: str, num_steps: int) -> list[float]:
    """By plain torch."""
    source = load_source(model)
    assert source.loss_fn is not None and source.targets is not None
    optimizer = torch.optim.SGD(source.model.parameters())
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = source.loss_fn(source.model(*source.args), *source.targets)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses
