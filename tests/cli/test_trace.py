from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopart.cli.main import main

MODEL = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.three.weight = self.one.weight
    def forward(self, x):
        y = self.one(x)
        return self.three(self.two(y)) + y
build_model = Net
def example_inputs():
    return (torch.rand(8, 64),)
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return str(path)


def test_json_has_all_that_was_captured(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", model, "--mode", "train", "--json", "--batch", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tracer"] == "torch.export" and report["training"] and report["batch_size"] == 4
    assert [layer["name"] for layer in report["layers"]] == ["one", "two", "three"]
    assert report["num_parameters"] == 2 * 64 * 64 + 3 * 64
    assert report["flops"] == 3 * 2 * 4 * 64 * 64
    assert report["saved_bytes"] == sum(layer["saved_bytes"] for layer in report["layers"]) > 0
    activation = 4 * 64 * 4
    assert [(cut["layer"], cut["bytes"], len(cut["tensors"])) for cut in report["cuts"]] == [
        ("two", activation, 1), ("three", 2 * activation, 2),
    ]
    assert all(cut["gradient_bytes"] == cut["bytes"] for cut in report["cuts"])
    assert report["notes"] == []


def test_text_names_the_tracer_and_ties(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", model]) == 0
    out = capsys.readouterr().out
    assert "captured by torch.export for inference, a batch of 8" in out and "2 places to cut" in out
    assert "(tied)" in out and "Notes" not in out


def test_what_cannot_be_looked_into_is_said_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "branching.py"
    path.write_text(
        "import torch\nfrom torch import nn\nclass Branch(nn.Module):\n    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "def build_model(): return nn.Sequential(nn.Linear(4, 4), Branch(), nn.Linear(4, 4))\n"
        "def example_inputs(): return (torch.rand(2, 4),)\n"
    )
    assert main(["trace", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Notes" in out and "branching.py:5" in out
    assert main(["trace", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tracer"] != "torch.export" and report["notes"]


def test_a_torch_less_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--help"]) == 0
    assert "how a model was captured" in capsys.readouterr().out
