from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest

import autopart
from autopart.cli.config import read_config
from autopart.cli.console import loudness, progress_bar
from autopart.cli.main import main
from autopart.errors import UsageError
from tests.paper import a_plan

OPTIONS = {"plan": {"devices": "devices", "json": "json_out", "pin": "pin"}, "profile": {"devices": "devices"}}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What the planner was called with, in a folder of its own."""
    calls: list[dict[str, Any]] = []

    def plan_source(_: object, **words: Any) -> object:
        calls.append(words)
        return a_plan()

    api = types.SimpleNamespace(load_source=lambda *_, **__: "source", plan_source=plan_source)
    monkeypatch.setattr(autopart, "api", api, raising=False)
    monkeypatch.chdir(tmp_path)
    return calls


def test_flags_come_before_the_file_and_the_file_before_defaults(planned: list[dict[str, Any]]) -> None:
    Path("autopart.yaml").write_text("devices: 2xt4\nplan: {batch: 8, mode: train, pin: [a=t4:0, b=t4:1]}\n")
    assert main(["plan", "model.py", "--batch", "16"]) == 0
    (words,) = planned
    assert (words["devices"], words["mode"], words["batch"], words["optimizer"]) == ("2xt4", "train", 16, "adamw")
    assert words["pins"] == (("a", "t4:0"), ("b", "t4:1"))


def test_without_a_file_nothing_changes(planned: list[dict[str, Any]]) -> None:
    assert main(["plan", "model.py"]) == 0
    assert planned[0]["devices"] is None and planned[0]["mode"] == "infer"


@pytest.mark.parametrize(("text", "message"), [
    ("device: 2xt4\n", "no command has an option 'device'"),
    ("plam: {batch: 8}\n", "there is no command 'plam'"),
    ("plan: {barch: 8}\n", "`autopart plan` has no option 'barch'; did you mean batch"),
    ("- devices\n", "holds no options"),
    ("devices: [\n", "is not YAML"),
    ("devices: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ("devices: 2026-11-22\n", "neither a word, a number"),
    ("plan: {batch: many}\n", "--batch"),
])
def test_a_wrong_file_is_refused_in_one_line(
    planned: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    Path("autopart.yaml").write_text(text)
    assert main(["plan", "model.py"]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not planned


def test_what_is_said_of_a_command_comes_before_what_is_said_of_all(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("plan: {devices: 1xl4, json: true}\ndevices: 2xt4\n")
    assert read_config(tmp_path / "a.yaml", OPTIONS) == {
        "plan": {"devices": "1xl4", "json_out": True}, "profile": {"devices": "2xt4"},
    }
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path, OPTIONS)


def test_quiet_leaves_results_and_errors(planned: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model.py", "-o", "plan.json"]) == 0
    assert "wrote plan.json" in capsys.readouterr().err
    assert main(["plan", "model.py", "-o", "plan.json", "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.out and not quiet.err
    assert main(["--quiet", "plan"]) == 2
    assert "MODEL" in capsys.readouterr().err


def test_verbose_tells_every_step_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    for level, told in (("quiet", ""), ("normal", ""), ("verbose", "autopart: tracing 1/3\n")):
        with loudness(level), progress_bar() as progress:  # type: ignore[arg-type]
            progress("tracing", 1, 3)
        assert capsys.readouterr().err == told
