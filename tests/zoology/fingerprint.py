"""A key for results: of the packages' versions and of autopart's code that splits models."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import autopart

__all__ = ["key_of_code", "sources", "versions"]

_ROOMS = ("", "keying", "schema", "tracing", "splitting")  # "" is the top level; splitting imports from no other room


def versions() -> str:
    """Of the packages that matter, as far as they are installed."""
    found = []
    for name in ("torch", "transformers", "timm", "torchvision"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def sources() -> Iterator[Path]:
    """Every source file of autopart that what is split, and how, may depend on, in a fixed order."""
    home = Path(autopart.__file__).parent
    for room in _ROOMS:
        yield from sorted((home / room).rglob("*.py"))


def key_of_code() -> str:
    """Versions, and a hash of the source files that decide."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"{versions()}; code {digest.hexdigest()[:12]}"
