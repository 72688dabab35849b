"""What code a model runs, in one hash: versions, the user's files, and the files that its classes are from."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

import autopart

__all__ = ["code_key", "file_digest", "is_torch", "is_users", "loaded_files", "user_files"]

_STDLIB = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib")})
_PACKAGES = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib")} | {*site.getsitepackages()})
_OWN = str(Path(autopart.__file__).parent)
_OURS = frozenset((
    "torch", "torchgen", "functorch", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "pulp", "highspy",
    "pydantic", "pydantic_core", "typer", "click", "rich", "yaml", "tabulate", "typing_extensions", "annotated_types",
    "typing_inspection", "shellingham", "pygments", "markdown_it", "mdurl", "optree", "psutil", "packaging",
    "setuptools", "pkg_resources", "_distutils_hack",
))  # fmt: skip
"""packages that autopart and torch load when they need them: of these torch's and numpy's versions count"""


def code_key(model: nn.Module) -> str:
    """A hash of the code that a model can reach; empty if some of it is in no file.

    It holds the versions of Python, torch, numpy and autopart (with the state of its files), the contents of all
    loaded Python files that are neither installed nor Python's, the environment variables that these name in quotes,
    the versions of the packages that they name, and time and size of the files that the model's classes are from.
    """
    main = sys.modules.get("__main__")
    if not getattr(main, "__file__", None):
        return ""  # typed in: whatever the model calls may have been
    classes = _class_modules(model)
    if any(each is None or not Path(_file(each)).is_file() for each in classes.values()):
        return ""
    digest = hashlib.sha256(repr((*_versions(), _own_state())).encode())
    for line in _installed(classes):
        digest.update(f"{line}\n".encode())
    for path in user_files():
        content = Path(path).read_bytes()
        digest.update(f"{path}:{len(content)}:".encode() + content)
        digest.update(repr(list(_named_in(content))).encode())
    return digest.hexdigest()


def _class_modules(model: nn.Module) -> dict[str, ModuleType | None]:
    """The modules by name that define the classes of a model's modules, torch's and Python's own left out."""
    names = dict.fromkeys(kind.__module__ for each in model.modules() for kind in type(each).__mro__)
    tops = {name: name.partition(".")[0] for name in names if not is_torch(name)}
    return {name: sys.modules.get(name) for name, top in tops.items() if top not in sys.stdlib_module_names}


def is_torch(module_name: str) -> bool:
    """Whether a module is torch's."""
    return module_name.partition(".")[0] == "torch"


def is_users(space: Mapping[str, Any]) -> bool:
    """Whether a module, given by its variables, is from a file neither Python's, nor installed, nor autopart's."""
    file = space.get("__file__")
    if not isinstance(file, str) or not file.endswith(".py"):
        return False
    return not file.startswith((*_STDLIB, *_PACKAGES, _OWN + os.sep))


def loaded_files() -> tuple[str, ...]:
    """The user's files that are loaded, and the first file of each package that is, but for those of torch's kin."""
    tops = ((name, _file(module)) for name, module in list(sys.modules.items()) if "." not in name)
    packages = (file for name, file in tops if name not in _OURS and file.startswith(_PACKAGES))
    return (*user_files(), *sorted(packages))


def user_files() -> tuple[str, ...]:
    """The files of all loaded modules that are the user's, in order."""
    return tuple(sorted({file for each in _user_modules() if Path(file := _file(each)).is_file()}))


def _user_modules() -> Iterator[ModuleType]:
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and is_users(vars(module)):
            yield module


def file_digest(path: str) -> str:
    """A hash of a file's content; empty if there is no such file."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _versions() -> tuple[str, ...]:
    numpy = sys.modules.get("numpy")
    return (
        platform.python_version(), torch.__version__, str(torch.version.git_version), autopart.__version__,
        str(getattr(numpy, "__version__", "")), platform.machine(),
    )  # fmt: skip


@functools.cache
def _own_state() -> str:
    """Of autopart's own files: whoever works on it has one version for many states."""
    return " ".join(f"{path}:{_state(str(path))}" for path in sorted(Path(_OWN).rglob("*.py")))


def _installed(classes: Mapping[str, ModuleType | None]) -> Iterator[str]:
    """A line for each installed package that the user's files and the model's classes name, and for each class file.

    Not for all that are loaded: torch and others load more while a model is traced.
    """
    spaces = [vars(each) for each in (*classes.values(), *_user_modules()) if each is not None]
    named = {top for space in spaces for value in list(space.values()) if (top := _top_of(value))} - _OURS
    for name in sorted({*named, *(name.partition(".")[0] for name in classes)}):
        file = _file(sys.modules.get(name))
        if file.startswith(_PACKAGES):
            yield f"{name} {vars(sys.modules[name]).get('__version__', '')} {_state(file)}"
    for name, module in sorted(classes.items()):
        if module is not None and not is_users(vars(module)):  # of the user's files the contents count
            yield f"{name} {_state(_file(module))}"


def _top_of(value: object) -> str:
    """The package that a global variable is from."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(type(value), "__module__", "")
    if isinstance(value, type | FunctionType):
        home = value.__module__
    return home.partition(".")[0] if isinstance(home, str) else ""


def _named_in(content: bytes) -> Iterator[tuple[str, str]]:
    """The environment variables whose names are in quotes in a file."""
    for name, value in sorted(os.environ.items()):
        if f'"{name}"'.encode() in content or f"'{name}'".encode() in content:
            yield name, value


def _file(module: object) -> str:
    found = getattr(module, "__dict__", {}).get("__file__")  # past what lazy modules do when asked
    return found if isinstance(found, str) else ""


def _state(path: str) -> str:
    try:
        state = os.stat(path)
    except OSError:  # in a zip file
        return ""
    return f"{state.st_mtime_ns}:{state.st_size}"
