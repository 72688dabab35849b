"""Results of other code are not taken for results of this code."""

from __future__ import annotations

import ast
from pathlib import Path

import autopart
from tests.zoology.fingerprint import key_of_code, sources

HOME = Path(autopart.__file__).parent


def test_every_file_that_splitting_imports_is_in_the_key() -> None:
    known = set(sources())
    open_files = [HOME / "splitting" / "__init__.py", HOME / "tracing" / "__init__.py"]
    seen: set[Path] = set()
    while open_files:
        path = open_files.pop()
        if path not in seen:
            seen.add(path)
            open_files += _imported(path)
    assert len(seen) > 40
    assert not seen - known


def test_key_is_the_same_each_time() -> None:
    assert key_of_code() == key_of_code()


def _imported(path: Path) -> list[Path]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Import):
            names += [each.name for each in node.names]
    own = [HOME.joinpath(*name.split(".")[1:]) for name in names if name.partition(".")[0] == "autopart"]
    files = [path for each in own if each != HOME for path in (each.with_suffix(".py"), each / "__init__.py")]
    return [each for each in files if each.exists()]  # not autopart/__init__.py: it loads its names on first use
