"""``autopart report`` and ``autopart export`` with a model, as a user calls them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autopart.cli.main import main
from autopart.schema.store import save
from autopart.schema.timeline import Event
from tests.paper import a_measurement, a_plan


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    save(a_plan(), tmp_path / "plan.json")
    return str(tmp_path / "plan.json")


def test_a_report_with_a_measurement_and_a_trace(plan_file: str, tmp_path: Path) -> None:
    save(a_measurement(), run := tmp_path / "run.json")
    page, trace = tmp_path / "report.html", tmp_path / "trace.json"
    assert main(["report", plan_file, "--measured", str(run), "-o", str(page), "--trace", str(trace)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "Stages as measured" in text and text.endswith("</html>\n")
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(("words", "message"), [
    ([], "nothing to write: give -o report.html"),
    (["--measured", "run.json"], "nothing to write: give -o report.html"),
])
def test_wrong_usage_is_said(
    plan_file: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", plan_file, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_trace_of_a_run_without_a_report(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event = Event(stage=1, kind="backward", microbatch=3, start_seconds=0.5, end_seconds=0.75)
    trace = tmp_path / "t.json"
    for events in ((event,), ()):
        save(replace(a_measurement(), events=events), run := tmp_path / "run.json")
        assert main(["report", plan_file, "--measured", str(run), "--trace", str(trace)]) == 0
        ran = [each for each in json.loads(trace.read_text())["traceEvents"] if each["pid"] == 1 and each["ph"] == "X"]
        assert [(each["name"], each["tid"], each["ts"], each["dur"]) for each in ran] == [
            ("backward 3", 1, 5e5, 2.5e5)
        ] * len(events)
        assert ("has no events" in capsys.readouterr().err) == (not events)


def test_a_measurement_of_another_plan_is_refused(
    plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(replace(a_measurement(), num_microbatches=4), run := tmp_path / "run.json")
    assert main(["report", plan_file, "--measured", str(run), "-o", str(tmp_path / "r.html")]) == 2
    assert "2 stages with 4 micro-batches, the plan has 2 with 8" in capsys.readouterr().err


MODEL = """
import torch
from torch import nn
def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
def example_inputs():
    return (torch.rand(4, 8),)
"""


def test_export_with_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model := tmp_path / "small.py").write_text(MODEL)
    file, stages = str(tmp_path / "plan.json"), tmp_path / "stages.py"
    assert main(["plan", str(model), "-d", "2xt4", "--stages", "2", "--no-verify", "-o", file]) == 0
    assert main(["export", file, str(model), "--to", "python", "-o", str(stages)]) == 0
    compile(stages.read_text(), "stages.py", "exec")
    capsys.readouterr()
    assert main(["export", file, str(model), "--to", "accelerate"]) == 0
    assert set(json.loads(capsys.readouterr().out)["device_map"].values()) == {0, 1}
    assert main(["export", file, "--to", "python"]) == 2
    assert "give MODEL after the plan" in capsys.readouterr().err
    assert main(["export", file, str(model), "--to", "csv"]) == 2
    assert "needs the plan only" in capsys.readouterr().err
