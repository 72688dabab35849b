"""Which checks passed before, so that nobody waits for them again.

A check is known by all that its outcome follows from: the traced graph, the cuts, the devices, the versions of Python,
torch and autopart, and the source of the model and of everything else that is loaded and not installed.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import site
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import autopart
from autopart import cache
from autopart.program import Program
from autopart.schema.plan import Check
from autopart.schema.store import dump

__all__ = ["passed_before", "remember"]

_SECTION = "checks"
_INSTALLED = tuple(
    {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {*site.getsitepackages()}
)


def passed_before(name: str, program: Program, boundaries: tuple[int, ...], where: tuple[str, ...]) -> Check | None:
    """The check of this name, if it passed before for this program cut at ``boundaries`` onto devices ``where``."""
    key = _key(name, program, boundaries, where)
    found = cache.read(_SECTION, key) if key else None
    return Check(name=name, outcome="passed", detail=found.decode()) if found else None  # type: ignore[arg-type]


def remember(program: Program, boundaries: tuple[int, ...], where: tuple[str, ...], check: Check) -> None:
    """Keep a check that passed; nothing is kept of models whose source is in no file."""
    key = _key(check.name, program, boundaries, where)
    if key:
        cache.write(_SECTION, key, check.detail.encode())


def _key(name: str, program: Program, boundaries: tuple[int, ...], where: tuple[str, ...]) -> tuple[str, ...]:
    """Empty if the code is not known."""
    code = _code(program.module)
    if not code:
        return ()
    graph = hashlib.sha256(dump(program.graph).encode()).hexdigest()
    versions = (platform.python_version(), torch.__version__, autopart.__version__)
    return (name, graph, str(boundaries), *where, code, *versions)


def _code(model: nn.Module) -> str:
    """A hash of the source: contents of the user's files, time and size of installed ones; empty if not in files."""
    main = sys.modules.get("__main__")
    if not getattr(main, "__file__", None):
        return ""  # typed in: whatever the model calls may have been
    digest = hashlib.sha256()
    for module in _modules_of(model):
        path = Path(module.__file__ or "")
        if not path.is_file():
            return ""
        digest.update(f"{path}:{_installed_state(path)}\n".encode())
    for path in sorted(_loaded_files()):
        digest.update(f"{path}:".encode() + path.read_bytes())
    return digest.hexdigest()


def _modules_of(model: nn.Module) -> list[ModuleType]:
    names = dict.fromkeys(type(each).__module__ for each in model.modules())
    return [sys.modules[name] for name in names if name in sys.modules]


@functools.cache
def _installed_state(path: Path) -> str:
    state = path.stat()
    return f"{state.st_mtime_ns}:{state.st_size}"


def _loaded_files() -> set[Path]:
    """Python files of all loaded modules that are neither Python's nor installed."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    own = {Path(file) for file in files if isinstance(file, str) and not file.startswith(_INSTALLED)}
    return {path for path in own if path.suffix == ".py" and path.is_file()}
