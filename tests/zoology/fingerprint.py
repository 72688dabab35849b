"""A key for results: of the packages' versions and of autopart's code that splits models."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import autopart

__all__ = ["key_of_code", "versions"]

_ROOMS = ("tracing", "splitting")
_FILES = ("program.py", "segment.py", "transfer.py")


def versions() -> str:
    """Of the packages that matter, as far as they are installed."""
    found = []
    for name in ("torch", "transformers", "timm", "torchvision"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def key_of_code() -> str:
    """Versions, and a hash of the source files that decide."""
    digest = hashlib.sha256()
    home = Path(autopart.__file__).parent
    files = [path for room in _ROOMS for path in sorted((home / room).glob("*.py"))]
    for path in [*files, *(home / name for name in _FILES)]:
        digest.update(path.read_bytes())
    return f"{versions()}; code {digest.hexdigest()[:12]}"
