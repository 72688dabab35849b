"""The shape of the house, read from the source: what may import what, how large files are, what they may be called."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import autopart

PACKAGE = Path(autopart.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("tracing", "profiling", "planning", "splitting", "running", "reporting", "exporting")
OTHER_ROOMS = ("advising", "comparing", "explaining", "generating", "keying", "orders", "sharding", "training")
TORCHLESS = ("advising", "schema", "planning", "reporting")
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "core", "base"}

LEVELS = {
    **dict.fromkeys(("errors", "units", "progress", "cache", "candidates"), 0),
    "schema": 1,
    **dict.fromkeys(("customgrad", "fusedattention", "livebytes", "pythonstate", "recompute"), 1),
    **dict.fromkeys(("keying", "weightless"), 1),
    **dict.fromkeys(("opaque", "pace", "pastruns", "program", "pytrees", "restoring", "segment", "transfer"), 2),
    **dict.fromkeys(("orders", "recasting", "rerun", "sharding", "stagedtypes"), 2),
    **dict.fromkeys(("architectures", "batchlaw", "modelsource", "usercode"), 2),
    **dict.fromkeys(("codecs", "compression"), 2),
    **dict.fromkeys(ROOMS, 3),
    **dict.fromkeys(("advising", "comparing", "explaining", "generating", "training"), 4),
    **dict.fromkeys(("api", "doctor", "runs", "sharedweights", "sizes", "tracecache", "verbs"), 4),
    "cli": 5,
}
"""What is on a level may import from its own level (rooms: not from each other) and from those below."""

FLOORS = {
    "planning": ({"solving", "costing", "simulating"}, {"searching"}, {"aiming"}),
    "profiling": ({"devices"}, {"estimating", "measuring"}, {"calibrating"}),
}
"""Folders inside of a room, from the ground up: each imports from its own floor and those below, and nothing from
the files of the room itself, which are on top."""


def words(path: Path) -> tuple[str, ...]:
    """autopart/planning/searching/chain.py → ("planning", "searching", "chain")"""
    return path.relative_to(PACKAGE).with_suffix("").parts


def part(path: Path) -> str:
    return words(path)[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Every absolute name that a module imports, ``from a import b`` as a.b too, with its line."""
    found: list[tuple[str, int]] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return tuple(found)


def own_imports(path: Path) -> list[tuple[tuple[str, ...], int]]:
    found = [(tuple(name.split(".")), line) for name, line in imports(path)]
    return [(pieces[1:], line) for pieces, line in found if pieces[0] == "autopart" and len(pieces) > 1]


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 200 and {part(path) for path in MODULES} >= {*ROOMS, *OTHER_ROOMS, "cli", "schema"}


def test_every_part_has_a_level() -> None:
    assert {part(path) for path in MODULES} - {"__init__"} <= set(LEVELS)


def test_imports_go_down_and_rooms_do_not_know_each_other() -> None:
    wrong = []
    for path in MODULES:
        here = part(path)
        for target, line in own_imports(path) if here != "__init__" else ():
            there = target[0]
            if there not in LEVELS or there == here:
                continue  # a public name of autopart/__init__.py, or the same room
            if LEVELS[there] > LEVELS[here] or {here, there} <= set(ROOMS):
                wrong.append(f"{path}:{line}: {here} imports {there}")
    assert not wrong


def test_a_room_is_entered_by_its_door() -> None:
    wrong = []
    for path in MODULES:
        for target, line in own_imports(path):
            room, *inner = target
            if room not in (*ROOMS, *OTHER_ROOMS) or room == part(path) or not inner:
                continue
            if (PACKAGE / room / f"{inner[0]}.py").exists():
                wrong.append(f"{path}:{line}: import from autopart.{room}, not from autopart.{room}.{inner[0]}")
    assert not wrong


@pytest.mark.parametrize("room", FLOORS)
def test_imports_inside_of_a_room_go_down(room: str) -> None:
    floors = {folder: floor for floor, folders in enumerate(FLOORS[room]) for folder in folders}
    for path in (PACKAGE / room).rglob("*.py"):
        here = words(path)[1]
        for target, line in own_imports(path):
            if here in floors and target[0] == room and target[1] != here:
                where = f"{path}:{line}: {here} imports {'.'.join(target)}"
                assert target[1] in floors and floors[target[1]] <= floors[here], where


def importing(packages: set[str], paths: list[Path]) -> list[str]:
    """Where one of them is imported."""
    return [
        f"{path}:{line}: {name}" for path in paths for name, line in imports(path) if name.split(".")[0] in packages
    ]


def test_pulp_is_touched_in_planning_only() -> None:
    assert importing({"pulp", "highspy"}, MODULES), "they are looked for where they are"
    assert not importing({"pulp", "highspy"}, [path for path in MODULES if part(path) != "planning"])


def test_paper_rooms_name_no_torch() -> None:
    assert not importing({"torch", "transformers"}, [path for path in MODULES if part(path) in TORCHLESS])


def test_modules_and_functions_are_small() -> None:
    large = []
    for path in MODULES:
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > 300:
            large.append(f"{path} has {num_lines} lines: find the second idea in it")
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                num_lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if num_lines > 40:
                    large.append(f"{path}:{node.lineno}: {node.name} has {num_lines} lines")
    assert not large


def test_names_say_something() -> None:
    assert not [path for path in MODULES if FORBIDDEN_NAMES & set(words(path))]


def says_names(path: Path) -> bool:
    return any(
        isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
        for node in tree(path).body
    )


def test_public_names_exist_and_are_said() -> None:
    """But in what is nothing but a docstring."""
    assert not [
        path for path in MODULES
        if path.name != "__main__.py" and tree(path).body[1:] and not says_names(path)
    ]


def test_schema_holds_frozen_dataclasses_only() -> None:
    for path in (PACKAGE / "schema").glob("*.py"):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                decorators = [ast.unparse(each) for each in node.decorator_list]
                assert decorators == ["dataclass(frozen=True, slots=True, kw_only=True)"], f"{path}: {node.name}"
                assert not node.bases, f"{path}: {node.name} inherits"


def test_doors_open() -> None:
    """Every name in ``__all__`` of every room, and of the package, can be had."""
    for name in ("autopart", *(f"autopart.{room}" for room in (*ROOMS, *OTHER_ROOMS, "schema"))):
        door = importlib.import_module(name)
        names = getattr(door, "__all__", ())
        assert sorted(set(names)) == sorted(names), f"{name}: a name is said twice"
        for public in names:
            assert hasattr(door, public), f"{name}.{public}"


def test_type_checkers_and_python_see_the_same_public_names() -> None:
    guarded = [node for node in tree(PACKAGE / "__init__.py").body if isinstance(node, ast.If)]
    seen = [alias.name for node in ast.walk(guarded[0]) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == list(autopart.__all__)
    assert set(seen) <= set(dir(autopart))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_paper_rooms_work_where_there_is_no_torch() -> None:
    names = [
        ".".join(("autopart", *words(path))).removesuffix(".__init__") for path in MODULES if part(path) in TORCHLESS
    ]
    done = run_python(
        "import sys, importlib\nsys.modules['torch'] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\nprint('all')"
    )
    assert done.stdout == "all\n", done.stderr


def test_help_imports_no_torch() -> None:
    done = run_python(
        "import sys\nfrom autopart.cli.main import main\ncode = main(['--help'])\n"
        "assert code == 0 and 'torch' not in sys.modules and 'pulp' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr
