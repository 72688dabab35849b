from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import pytest

from autopart import planning
from autopart.cli.main import main
from autopart.planning import SolverState
from autopart.schema.diagnosis import Diagnosis
from autopart.schema.store import parse

WORKING = (
    SolverState(name="highs", package="highspy", version="1", answer="optimal"),
    SolverState(name="cbc", package="pulp", version="3", answer="optimal"),
)


@pytest.fixture
def solvers(monkeypatch: pytest.MonkeyPatch) -> list[SolverState]:
    """What the solvers are said to be; all well unless a test changes it."""
    found = list(WORKING)
    monkeypatch.setattr(planning, "solvers_here", lambda: tuple(found))
    return found


def examined(capsys: pytest.CaptureFixture[str], code: int = 0) -> Diagnosis:
    assert main(["doctor", "--json"]) == code
    return parse(Diagnosis, capsys.readouterr().out)


def test_it_says_what_is_here(solvers: list[SolverState], capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys)
    assert found.is_well and {"torch", "cuda", "highs", "cbc", "timm"} <= {each.name for each in found.findings}
    assert found.devices[-1].backend == "cpu"
    assert main(["doctor"]) == 0
    assert "all that is needed is here" in capsys.readouterr().out


def test_a_missing_package_comes_with_the_line_to_type(
    solvers: list[SolverState], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (timm,) = (each for each in examined(capsys).findings if each.name == "timm")
    assert (timm.outcome, timm.suggestion) == ("missing", "pip install timm")


def test_a_solver_that_does_not_answer_is_broken(
    solvers: list[SolverState], capsys: pytest.CaptureFixture[str]
) -> None:
    solvers[1] = dataclasses.replace(solvers[1], answer="no answer")
    found = examined(capsys, code=2)
    assert not found.is_well
    assert [each.name for each in found.findings if each.outcome == "broken"] == ["cbc"]
    assert main(["doctor"]) == 2
    assert "cbc must be mended" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_said(
    solvers: list[SolverState], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "file"))
    (cache,) = (each for each in examined(capsys).findings if each.area == "cache")
    assert cache.outcome == "broken" and "AUTOPART_CACHE" in cache.suggestion


def test_the_solvers_here_solve() -> None:
    assert [(each.name, each.answer) for each in planning.solvers_here()] == [("highs", "optimal"), ("cbc", "optimal")]


def test_json_output_follows_its_schema(solvers: list[SolverState], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "diagnosis"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert main(["doctor", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) <= set(schema["$defs"]["Diagnosis"]["properties"])
