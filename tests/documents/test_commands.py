"""Every ``autopart`` line in the code blocks of README and docs/ is run, in a folder with what a user would have there.

Pages may write their own files: a block that begins with ``# NAME.py`` or ``# NAME.yaml``.  There is no GPU here, so
``cuda:0`` is played by ``cpu:0``; options in brackets are left out.  Pages with commands that take minutes are run
whole by ``pytest -m long tests/documents`` only; the name of the test says why.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopart.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FILES = {
    "model.py": """
import torch
from torch import nn
def build_model():
    return nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))
def example_inputs():
    return (torch.rand(32, 256),)
def example_targets():
    return (torch.rand(32, 256),)
def loss_fn(output, target):
    return nn.functional.mse_loss(output, target)
""",
    "data.py": """
import torch
train = [(torch.rand(256), torch.rand(256)) for _ in range(64)]
""",
    "config.json": json.dumps({
        "model_type": "llama", "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 512, "vocab_size": 1000, "max_position_embeddings": 4096,
    }),
    "cluster.yaml": "devices:\n  - {name: a, kind: t4, node: n}\n  - {name: b, kind: l4, node: n}\n",
}  # fmt: skip
STARTS_PROCESSES = ("run", "train")
LONG = {"examples/llama70b.py": "traces 82 layers, 10 s", "examples/gpt2.py": "traces and runs 124M parameters"}
NEEDS = {
    "--emulate": "an emulated cluster is calibrated first, a minute", "compare": "plans several sets",
    "generate": "traces a decoder with few tokens and with many",
}
MEASURES = ("cpu:", "cpu,")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page tells its reader to type, and to write."""

    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...]


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    files = tuple((match[1], block) for block in blocks if (match := re.match(r"# (\w+\.(?:py|yaml))\n", block)))
    indented = re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    lines = "".join([*blocks, *(re.sub("^ {4}", "", each, flags=re.MULTILINE) for each in indented)])
    joined = re.sub(r"\\\n\s*", " ", lines)
    found = re.findall(r"^(?:\$ )?(autopart [a-z-].*)$", joined, re.MULTILINE)
    return Page(commands=tuple(dict.fromkeys(each for each in found)), files=files)


def words_of(command: str) -> list[str]:
    """As a shell without variables would read them; optional parts are left out."""
    text = re.sub(r"\[[^\]]*\]", "", command).replace("cuda:", "cpu:")
    return shlex.split(text, comments=True)[1:]


def reader_plan(words: list[str]) -> tuple[str, str, str]:
    """Model and devices of a plan that the reader is held to have when he types these words."""
    model = next((word for word in words[2:3] if word.endswith(".py")), "model.py")
    return model, "--devices", "cpu:0,cpu:1" if words[0] in STARTS_PROCESSES else "2xt4"


def reason_to_wait(page: Page) -> str:
    """Why a page is not run with the quick tests; empty: it is."""
    for command in page.commands:
        words = words_of(command)
        if words[0] in STARTS_PROCESSES:
            return "starts processes"
        if any(mark in word for word in words for mark in MEASURES):
            return "measures on the processor"
        for word, why in (*LONG.items(), *NEEDS.items()):
            if word in words:
                return why
    return ""


def cases() -> list[object]:
    found: list[object] = []
    for path in PAGES:
        page, name = read(path), str(path.relative_to(ROOT))
        if page.commands:
            waits = reason_to_wait(page)
            found.append(pytest.param(page, "quick", id=name))
            if waits:
                marks = (pytest.mark.long, pytest.mark.timeout(1200))
                found.append(pytest.param(page, "whole", id=f"{name}, whole ({waits})", marks=marks))
    return found


def is_quick(command: str) -> bool:
    return not reason_to_wait(Page(commands=(command,), files=()))


@pytest.mark.usefixtures("kept_traces")
@pytest.mark.parametrize(("page", "which"), cases())
def test_what_is_written_works(
    page: Page, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if which == "quick":
        request.getfixturevalue("quick_links")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in (*FILES.items(), *page.files):
        (tmp_path / name).write_text(text)
    made: set[str] = set()
    not_made: set[str] = set()
    for command in page.commands:
        words = words_of(command)
        plans = [word for word in words[1:3] if word.endswith(".json") and words[0] not in ("plan", "compare")]
        if which == "quick" and (not is_quick(command) or not_made.intersection(words)):
            not_made.update(word for word in words if word.endswith(".json"))
            continue
        if "hf:" in command:
            pytest.importorskip("transformers")
        if plans and not Path(plans[0]).exists():  # the page takes it that the reader has one
            assert main(["plan", *reader_plan(words), "--stages", "2", "-o", plans[0], "--quiet"]) == 0
        code = main(words)
        told = capsys.readouterr()
        assert code == 0, f"{command}\n{told.err}"
        assert told.out or told.err, command
        made.add(words[0])
    assert made or which == "quick"


def test_there_are_commands_to_run() -> None:
    assert sum(len(read(path).commands) for path in PAGES) > 30
    tutorial = read(ROOT / "docs" / "tutorial.md")
    assert {name for name, _ in tutorial.files} == {"net.py", "home.yaml"} and len(tutorial.commands) >= 5
