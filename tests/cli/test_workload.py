from __future__ import annotations

import json
from pathlib import Path

import pytest

from autopart.cli.main import main
from tests.schema.test_workloadfile import GOOD
from tests.test_architecture import run_python


@pytest.fixture
def workload_file(tmp_path: Path) -> str:
    (tmp_path / "graph.json").write_text(json.dumps(GOOD), encoding="utf-8")
    return str(tmp_path / "graph.json")


def test_json_has_exactly_the_promised_fields(workload_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--contiguous"], ["--non-contiguous"]):
        assert main(["plan", "--workload", workload_file, "--json", *words]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert list(answer) == ["objective", "bound", "gap", "outcome", "solve_seconds", "assignment"]
        assert answer["assignment"] == {"5": "accelerator0", "9": "cpu0"}
        assert answer["objective"] == pytest.approx(1.75) and answer["outcome"] == "proven"


def test_text_and_file(workload_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--workload", workload_file, "-o", str(tmp_path / "answer.json")]) == 0
    out = capsys.readouterr().out
    assert "The largest load is 1.75 on 2 of 3 devices, contiguous." in out and "Proven" in out
    assert json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))["objective"] == pytest.approx(1.75)


@pytest.mark.parametrize(("words", "code", "message"), [
    (["plan"], 2, "or --workload FILE"),
    (["plan", "model.py", "--non-contiguous"], 2, "about --workload"),
    (["plan", "model.py", "--workload", "{}"], 2, "give one of them"),
    (["plan", "--workload", "{}.absent"], 2, "cannot be read"),
])
def test_wrong_usage(
    words: list[str], code: int, message: str, workload_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{}", workload_file) for word in words]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_infeasible_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "graph.json").write_text(json.dumps({**GOOD, "maxCPUs": 0}), encoding="utf-8")
    assert main(["plan", "--workload", str(tmp_path / "graph.json")]) == 3
    assert "there is no CPU" in capsys.readouterr().err


def test_a_workload_needs_no_torch(workload_file: str) -> None:
    done = run_python(
        "import sys\nsys.modules['torch'] = None\nfrom autopart.cli.main import main\n"
        f"sys.exit(main(['plan', '--workload', {workload_file!r}, '--json']))"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "proven"
