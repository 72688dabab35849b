"""docs/reference.md, made from the code: every command with its options, every file with its fields.

    python -m tests.documents.reference            # writes docs/reference.md anew
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer.main

from autopart.cli.main import app
from autopart.schema.jsonschema import FORMATS

__all__ = ["PAGE", "reference"]

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"

HEAD = """# Reference

Made from the code by `python -m tests.documents.reference`; a test compares it. What the commands are for is said in
[the command line](command-line.md), words in [words](words.md).
"""


def reference() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    parts = [HEAD, "## Commands\n"]
    parts += [_command(name, command) for name, command in sorted(group.commands.items())]
    parts.append("## Files\n\n`autopart schema NAME` prints the JSON Schema. Fields at the top:\n")
    parts += [_format(name, kind) for name, kind in sorted(FORMATS.items())]
    return "\n".join(parts)


def _command(name: str, command: Any) -> str:
    first, *rest = inspect.cleandoc(command.help or "").split("\n\n")
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([f"autopart {name}", *((each.metavar or each.name).strip("[]").upper() for each in arguments)])
    examples = "".join(f"- `{' '.join(each.split())}`\n" for each in rest if each.strip().startswith("autopart"))
    options = [each for each in command.params if each.param_type_name == "option" and each.name != "help"]
    hints = get_type_hints(inspect.unwrap(command.callback))
    rows = "".join(_option(each, hints) for each in sorted(options, key=lambda each: each.opts[0]))
    table = f"\n| option | default | |\n|---|---|---|\n{rows}" if rows else ""
    return f"### `{usage}`\n\n{' '.join(first.split())}\n\n{examples}{table}"


def _option(option: Any, hints: dict[str, Any]) -> str:
    names = ", ".join(f"`{each}`" for each in [*option.opts, *option.secondary_opts])
    plain = option.default in (None, "", False, ()) or callable(option.default)
    default = "" if plain else "yes" if option.default is True else f"`{option.default}`"
    choices = _choices(hints.get(option.name))
    words = (option.help or "") + (f" ({', '.join(map(str, choices))})" if choices else "")
    return f"| {names} | {default} | {_cell(words)} |\n"


def _choices(hint: Any) -> tuple[str, ...]:
    """The words that an option takes; () if it is free."""
    found = [hint, *get_args(hint)]
    return next((get_args(each) for each in found if get_origin(each) is Literal), ())


def _format(name: str, kind: type[Any]) -> str:
    fields = ", ".join(f"`{each.name}`" for each in dataclasses.fields(kind))
    return f"### {name}\n\n{(kind.__doc__ or '').strip().splitlines()[0]} {fields}.\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
