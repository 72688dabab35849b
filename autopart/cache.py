"""What was measured once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cache_directory", "read", "write"]


def cache_directory() -> Path:
    """Where the cache lies: $AUTOPART_CACHE, else $XDG_CACHE_HOME/autopart, else ~/.cache/autopart."""
    if own := os.environ.get("AUTOPART_CACHE"):
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "autopart"


def read(section: str, key_parts: Sequence[str]) -> bytes | None:
    """What was written under this key; None if nothing was, or if the entry is corrupt (with a warning)."""
    path = _path(section, key_parts)
    try:
        entry = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warnings.warn(f"the cache entry {path} cannot be read ({error.strerror}); it is made anew", stacklevel=2)
        return None
    digest, _, content = entry.partition(b"\n")
    if digest != _digest(content):
        warnings.warn(f"the cache entry {path} is corrupt; it is made anew", stacklevel=2)
        return None
    return content


def write(section: str, key_parts: Sequence[str], content: bytes) -> None:
    """Keeps ``content`` under a key.  Written aside and renamed, so that no reader sees half an entry.

    A cache that cannot be written is no reason to fail: it is said in a warning.
    """
    path = _path(section, key_parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".aside-", delete=False) as aside:
            try:
                aside.write(_digest(content) + b"\n" + content)
                aside.close()
                os.replace(aside.name, path)
            except BaseException:
                Path(aside.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        warnings.warn(
            f"the cache {path.parent} cannot be written ({error.strerror}); set AUTOPART_CACHE to a directory that can",
            stacklevel=2,
        )


def _path(section: str, key_parts: Sequence[str]) -> Path:
    key = json.dumps(list(key_parts)).encode()
    return cache_directory() / section / hashlib.sha256(key).hexdigest()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
