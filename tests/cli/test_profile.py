from __future__ import annotations

from pathlib import Path

import pytest

from autopart.cli.main import main

MODEL = """
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 128))

def example_inputs():
    return (torch.rand(4, 64),)
"""
KINDS = "kinds: [{name: my-card, memory: 24GB, bandwidth: 900GB/s, peaks: {fp32: 30TFLOPS}}]"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    return "model.py"


def test_with_next_to_no_budget_one_layer_is_measured_and_the_rest_marked(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", model, "--devices", "cpu:0", "--budget", "1us"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 3 different layers measured" in shown and "~: not measured" in shown
    assert main(["profile", model, "--devices", "cpu:0", "--budget", "10min"]) == 0
    shown = capsys.readouterr().out
    assert "runs of the whole model" in shown and "~" not in shown


def test_a_budget_that_is_no_time_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", model, "--budget", "soon"]) == 2
    assert "soon" in capsys.readouterr().err


def test_kinds_beside_the_model_are_profiled_and_shown(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "autopart-devices.yaml").write_text(KINDS)
    assert main(["profile", model, "--devices", "mycard"]) == 0
    assert "my-card  estimated" in capsys.readouterr().out
    assert main(["devices", "show", "my-card"]) == 0
    assert "user, autopart-devices.yaml" in capsys.readouterr().out
    assert main(["devices"]) == 0
    assert "my-card" in capsys.readouterr().out


def test_a_bad_file_beside_the_model_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "autopart-devices.yaml").write_text("kinds: 3")
    assert main(["profile", model, "--devices", "t4"]) == 2
    shown = capsys.readouterr().err
    assert "autopart-devices.yaml: kinds" in shown and shown.count("\n") == 1
