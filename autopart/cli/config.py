"""``autopart.yaml``: what a project's commands take where the command line is silent.

    devices: 2xrtx-4090,t4        # an option of every command that has it
    plan: {mode: train, batch: 64}    # options of one command

Flags come before this file, and this file before autopart's own defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autopart.errors import UsageError

__all__ = ["CONFIG_FILE", "read_config"]

CONFIG_FILE = Path("autopart.yaml")
"""in the working directory"""


def read_config(path: Path, options: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """The values that the file gives, by command and parameter; nothing if there is no such file.

    Args:
        path: of the file.
        options: for each command its options without dashes (``max-memory``), with the parameter that each sets.

    Raises:
        UsageError: the file cannot be read, or has a key that is neither a command nor an option.
    """
    data = _mapping(path)
    sections = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    shared = {key: value for key, value in data.items() if key not in sections}
    found: dict[str, dict[str, Any]] = {}
    for command, values in sections.items():
        if command not in options:
            raise UsageError(f"{path}: there is no command {command!r}; it may be one of {', '.join(sorted(options))}")
        names = options[command]
        for name, value in values.items():
            if name not in names:
                raise UsageError(f"{path}: `autopart {command}` has no option {name!r}; {_meant(name, names, command)}")
            found.setdefault(command, {})[names[name]] = _plain(path, name, value)
    for name, value in shared.items():
        takers = [command for command, names in options.items() if name in names]
        if not takers:
            every = {option for names in options.values() for option in names}
            raise UsageError(f"{path}: no command has an option {name!r}; {_meant(name, every, 'plan')}")
        for command in takers:  # what is said of one command comes before what is said of all
            found.setdefault(command, {}).setdefault(options[command][name], _plain(path, name, value))
    return found


def _meant(name: str, known: Iterable[str], command: str) -> str:
    """What the writer of a wrong option may have meant."""
    near = difflib.get_close_matches(str(name), sorted(known), n=3)
    where = f"`autopart {command} --help` lists them"
    return f"did you mean {' or '.join(near)}? {where}" if near else where


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; mend it, or take it away") from None
    import yaml  # slow, and most folders have no such file

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UsageError(f"{path} holds no options; write lines like `devices: 2xt4`")
    return data


def _plain(path: Path, name: str, value: Any) -> Any:
    """The value as the command line would give it."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) for each in values):
        raise UsageError(f"{path}: {name} is neither a word, a number nor a list of those")
    return value
