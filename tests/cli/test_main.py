from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import autopart
from autopart.cli.main import app, main
from autopart.errors import InfeasibleError, ModelSourceError, RunError, TracingError
from autopart.schema.alternatives import Alternative
from autopart.schema.store import dump, load_plan, save_plan
from autopart.schema.verification import Verification
from tests.paper import CHECKS, a_measurement, a_plan

RUN = "import sys\nfrom autopart.cli.main import main\nsys.exit(main({!r}))"
RUN_ALL_WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None\nfrom autopart.cli.main import main\n"
    "for words in {!r}:\n    assert main(words) == 0, words\n"
)


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    save_plan(a_plan(), tmp_path / "plan.json")
    return str(tmp_path / "plan.json")


VERIFIED = Verification(
    model="m.py", mode="infer", num_stages=2, batch=4, equal=("outputs", "buffers"), checks=CHECKS
)


@pytest.fixture
def fake_api(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """An api that notes how it was called and answers with plans made by hand."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def noting(name: str, answer: object) -> Callable[..., object]:
        def act(*args: Any, **kwargs: Any) -> object:
            calls.append((name, args, kwargs))
            return answer

        return act

    api = types.SimpleNamespace(
        calls=calls, load_source=noting("load_source", "source"), plan_source=noting("plan_source", a_plan()),
        verify_source=noting("verify_source", VERIFIED), run_source=noting("run_source", a_measurement()),
    )
    monkeypatch.setattr(autopart, "api", api, raising=False)
    return api


def test_what_needs_no_torch_runs_without_it(plan_file: str, tmp_path: Path) -> None:
    commands = [
        ["--help"], ["--version"], ["plan", "--help"], ["schema", "plan"], ["explain", plan_file],
        ["explain", plan_file, "--json"],
        ["export", plan_file, "--to", "csv"], ["report", plan_file, "--trace", str(tmp_path / "trace.json")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL_WITHOUT_TORCH.format(commands)], capture_output=True, text=True, timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_shell_completes_commands() -> None:
    words = {"_AUTOPART_COMPLETE": "complete_bash", "COMP_WORDS": "autopart pl", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "autopart.cli.main"], env={**os.environ, **words}, capture_output=True, text=True,
        timeout=120, check=False,
    )
    assert done.stdout.split() == ["plan"], done.stderr


def test_no_color_takes_the_colours_away() -> None:
    def colours(**words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "autopart.cli.main", "--help"], capture_output=True, text=True, timeout=120,
            env={**os.environ, "FORCE_COLOR": "1", **words}, check=True,
        )  # fmt: skip
        return re.findall(r"\x1b\[[0-9;]*3[0-7]m", done.stdout)

    assert colours()
    assert not colours(NO_COLOR="1")


def test_the_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    command = typer.main.get_command(app)
    found = {
        name: sorted(option for each in sub.params for option in each.opts if option.startswith("--"))
        for name, sub in command.commands.items()  # type: ignore[attr-defined]
    }
    shared = ["--batch", "--cluster", "--devices", "--dtype", "--json", "--max-memory", "--mode", "--optimizer",
              "--output", "--refresh"]
    assert found == {
        "compare": sorted([*(each for each in shared if each != "--cluster"), "--catalogue",
                           "--concurrency", "--format", "--microbatches", "--new-tokens", "--objective", "--plot",
                           "--prompt", "--rent", "--sets", "--time-limit", "--weights"]),
        "devices": ["--json"],
        "doctor": ["--json"],
        "explain": ["--json", "--layer", "--stage"],
        "export": ["--output", "--to"],
        "plan": sorted([*shared, "--advice", "--budget", "--concurrency", "--new-tokens", "--prompt", "--weights",
                        "--compress", "--contiguous", "--data-parallel", "--forbid", "--gap", "--master-weights",
                        "--method", "--microbatches", "--max-price", "--max-step-time", "--objective",
                        "--pin", "--plot", "--recompute", "--rent", "--reserve", "--schedule", "--top",
                        "--solver", "--stage-dtype", "--stages", "--tensor-parallel", "--time-limit", "--together",
                        "--verify", "--workload"]),
        "profile": sorted([*shared, "--budget"]),
        "report": ["--measured", "--output", "--trace"],
        "run": sorted(["--compress", "--compress-gradients", "--emulate", "--json", "--layers", "--output",
                       "--prefetch", "--single", "--steps", "--throttle", "--warmup"]),
        "schema": [],
        "trace": ["--batch", "--dtype", "--json", "--mode"],
        "train": sorted(["--accumulate", "--checkpoint-every", "--checkpoints", "--clip", "--compress-gradients",
                         "--data", "--elastic", "--hang-timeout", "--json", "--keep", "--lr", "--lr-floor",
                         "--lr-schedule", "--lr-warmup", "--metrics", "--most-recoveries", "--optimizer", "--output",
                         "--precision", "--prefetch", "--resume", "--returns", "--seed", "--shuffle", "--steps",
                         "--weight-decay"]),
        "verify": ["--json"],
    }


def test_plan_hands_every_word_on(fake_api: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([
        "plan", "model.py", "--devices", "2xt4,cpu", "--max-memory", "t4=8GiB", "--max-memory", "cpu=1GiB",
        "--mode", "train", "--batch", "8", "--microbatches", "4", "--schedule", "1f1b", "--dtype", "bf16",
        "--stages", "2", "--method", "even", "--solver", "cbc", "--time-limit", "2min", "--gap", "0.01",
        "--objective", "latency", "--refresh", "--no-verify", "--data-parallel", "2", "--tensor-parallel", "4",
        "--reserve", "t4=1GiB", "--master-weights", "--budget", "90s", "--recompute", "auto", "--pin", "a=t4:0",
        "--forbid", "b=cpu", "--together", "a,c", "--max-step-time", "80ms", "--max-price", "4$/h",
        "--rent", "cpu=0.50$/h",
    ])
    assert code == 0
    (_, _, load), (_, _, planned) = fake_api.calls
    assert load == {"dtype": "bf16", "may_lack_weights": True}
    planned.pop("progress")
    assert planned == {
        "devices": "2xt4,cpu", "max_memory": ("t4=8GiB", "cpu=1GiB"), "cluster_file": None, "refresh": True,
        "mode": "train", "batch": 8, "microbatches": 4, "schedule": "1f1b", "optimizer": "adamw", "dtype": "bf16",
        "max_step_seconds": 0.08, "max_usd_per_hour": 4.0, "rents": (("cpu", 0.5),),
        "objective": "latency", "stages": 2, "method": "even", "solver": "cbc", "time_limit_seconds": 120.0,
        "gap": 0.01, "verify": False, "advice": True, "data_parallel": 2, "tensor_parallel": 4, "recompute": "auto",
        "pins": (("a", "t4:0"),), "forbidden": (("b", "cpu"),), "together": (("a", "c"),), "reserve": ("t4=1GiB",),
        "master_weights": True, "budget_seconds": 90.0, "compress": "none", "stage_dtype": "keep",
    }
    assert capsys.readouterr().out.startswith(a_plan().verdict)


def test_several_plans_are_listed_and_the_best_is_written(
    fake_api: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plans = tuple(Alternative(plan=a_plan(), trade=trade) for trade in ("the best plan", "2.000x the time"))
    asked: list[int] = []

    def plan_top_source(source: object, num_plans: int, **words: object) -> tuple[Alternative, ...]:
        asked.append(num_plans)
        return plans

    fake_api.plan_top_source = plan_top_source
    written = tmp_path / "plan.json"
    assert main(["plan", "model.py", "--top", "2", "-o", str(written)]) == 0
    assert asked == [2]
    shown = capsys.readouterr().out
    assert shown.startswith(a_plan().verdict) and "2.000x the time" in shown
    assert load_plan(written) == a_plan()
    assert main(["plan", "model.py", "--top", "2", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["trade"] for each in listed] == ["the best plan", "2.000x the time"]


@pytest.mark.parametrize("words", [["--rent", "cpu"], ["--rent", "cpu=x"], ["--max-price", "4 euros"]])
def test_what_is_no_price_is_refused(words: list[str], fake_api: types.SimpleNamespace) -> None:
    assert main(["plan", "model.py", *words]) == 2


def test_what_is_not_said_is_left_to_the_planner(fake_api: types.SimpleNamespace) -> None:
    assert main(["plan", "model.py"]) == 0
    planned = fake_api.calls[-1][2]
    assert (planned["microbatches"], planned["schedule"], planned["stages"], planned["batch"]) == (None,) * 4
    assert planned["optimizer"] == "none" and planned["devices"] is None and planned["max_memory"] == ()


def test_json_is_one_document_and_nothing_else(
    fake_api: types.SimpleNamespace, plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "written.json"
    assert main(["plan", "model.py", "--json", "-o", str(written)]) == 0
    assert capsys.readouterr().out == dump(a_plan()) == written.read_text()
    assert main(["run", plan_file, "model.py", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["median_step_seconds"] == 0.02
    assert main(["explain", plan_file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_microbatches"] == 8


def test_run_and_verify_load_as_the_plan_says(
    fake_api: types.SimpleNamespace, plan_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", plan_file, "model.py", "--steps", "3", "--warmup", "0", "--no-single"]) == 0
    name, args, kwargs = fake_api.calls[-1]
    kwargs.pop("progress")
    assert (name, args) == ("run_source", (a_plan(), "model.py"))
    assert kwargs == {
        "steps": 3, "warmup": 0, "single": False, "layers": True, "compress": None, "emulate": None,
        "throttle": "sleep", "compress_gradients": "none", "prefetch": None,
    }
    assert "predicted" in capsys.readouterr().out
    assert main(["verify", plan_file, "model.py"]) == 0
    assert fake_api.calls[-1][:2] == ("verify_source", (a_plan(), "source"))
    out = capsys.readouterr().out
    assert "2 stages and the unsplit model agree, on a micro-batch of 4" in out
    assert "values   skipped: the weights have no values" in out


@pytest.mark.parametrize(("words", "message"), [
    (["nonsense"], "No such command 'nonsense'"),
    (["plan"], "Missing argument 'MODEL'"),
    (["plan", "m.py", "--nonsense"], "No such option"),
    (["plan", "m.py", "--mode", "guess"], "'guess' is not one of 'infer', 'train'"),
    (["plan", "m.py", "--batch", "0"], "--batch"),
    (["plan", "m.py", "--microbatches", "some"], "--microbatches 'some' is neither auto nor a whole number"),
    (["plan", "m.py", "--stages", "0"], "--stages 0 is below 1"),
    (["plan", "m.py", "--time-limit", "soon"], "'soon' is not a time"),
    (["plan", "m.py", "--optimizer", "adamw"], "--optimizer adamw has no use in inference"),
    (["explain", "nowhere.json"], "nowhere.json cannot be read"),
    (["run", "nowhere.json", "m.py", "--steps", "0"], "--steps"),
    (["plan", "nowhere.py"], "nowhere.py does not exist"),
])
def test_wrong_usage_is_one_line_and_exits_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("autopart: error: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [
    (ModelSourceError("bad model", detail="their line"), 2), (InfeasibleError("too big"), 3),
    (TracingError("no trace"), 4), (RunError("rank died"), 5), (ZeroDivisionError("oops"), 1),
    (KeyboardInterrupt(), 130),
])
def test_every_error_has_its_exit_code(
    error: BaseException, code: int, fake_api: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    fake_api.plan_source = fail
    assert main(["plan", "model.py"]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert ("their line" in err) == (code == 2)
    assert ("autopart: interrupted" in err) == (code == 130)
    assert ("this is a bug in autopart" in err) == (code == 1)


def test_a_traceback_is_shown_on_demand(
    fake_api: types.SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    fake_api.plan_source = fail
    assert main(["plan", "model.py", "--traceback"]) == 1
    assert "in fail" in capsys.readouterr().err
    monkeypatch.setenv("AUTOPART_TRACEBACK", "1")
    assert main(["plan", "model.py"]) == 1
    assert "in fail" in capsys.readouterr().err


def test_bare_autopart_shows_its_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Commands" in capsys.readouterr().out


def test_a_reader_that_stops_reading_is_no_error(plan_file: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = RUN.format(["explain", plan_file])
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(plan_file: str) -> None:
    code = RUN.format(["explain", plan_file])
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "standard output cannot be written: No space left on device" in done.stderr


def test_a_terminal_without_unicode_gets_something(plan_file: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autopart.cli.main", "explain", plan_file], capture_output=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0 and b" ... " in done.stdout and b"\\u" not in done.stdout


@pytest.mark.parametrize("words", [
    ["plan", "missing.py", "-o"], ["plan", "missing.py", "--plot"], ["compare", "missing.py", "-d", "t4", "-o"],
    ["report", "missing.json", "-o"], ["report", "missing.json", "--trace"],
    ["export", "missing.json", "--to", "csv", "-o"],
])  # fmt: skip
def test_files_that_cannot_be_written_are_said_before_anything_is_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "no" / "x.svg", "there is no folder")):
        assert main([*words, str(path)]) == 2
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_export_writes_to_a_file(plan_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", plan_file, "--to", "csv", "-o", str(tmp_path / "layers.csv")]) == 0
    assert (tmp_path / "layers.csv").read_text().count("\n") == 1 + a_plan().model.num_layers
    assert capsys.readouterr().out == ""
