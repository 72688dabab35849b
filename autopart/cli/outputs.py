"""Files that commands write: what cannot be written is said before anything is computed, not after."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from autopart.errors import UsageError

__all__ = ["writable"]


def writable(context: typer.Context, path: Path | None) -> Path | None:
    """The path, if a file can be written there: the callback of every option that names one.

    Raises:
        UsageError: it is a folder, its folder is not there, or nobody may write in it.
    """
    if path is None or context.resilient_parsing:
        return path
    folder = path.parent
    wrong = (
        "it is a folder" if path.is_dir()
        else "" if path.exists() and not path.is_file()  # a pipe or a device
        else f"there is no folder {folder}" if not folder.is_dir()
        else f"the folder {folder} is write-protected" if not os.access(folder, os.W_OK)
        else ""
    )
    if wrong:
        raise UsageError(f"{path} cannot be written: {wrong}; give another file")
    return path
