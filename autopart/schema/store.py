"""The disk border: plans, profiles and measurements as JSON files, read with every doubt and written in one piece.

The same dataclasses that walk between the rooms are read and written; nothing is declared twice.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from autopart.errors import FileFormatError, UsageError
from autopart.schema.measurement import Measurement
from autopart.schema.plan import FORMAT_VERSION, Plan
from autopart.schema.profile import Profile

__all__ = [
    "MAX_FILE_BYTES",
    "dump",
    "load",
    "load_measurement",
    "load_plan",
    "load_profile",
    "parse",
    "save",
    "save_plan",
    "write_text",
]

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is refused unread: the plan of a 10,000-layer model takes some megabytes."""

T = TypeVar("T")

_KINDS: dict[str, type[Any]] = {"plan": Plan, "measurement": Measurement, "profile": Profile}


def dump(thing: object) -> str:
    """JSON of any dataclass of the schema: fields in their order, floats exact, a newline at the end.

    Raises:
        ValueError: a number is not finite; JSON has no word for it, and no field means one.
    """
    (plain,) = _adapter(type(thing)).dump_python((thing,))
    return json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def parse(kind: type[T], text: str, *, where: str = "this text") -> T:
    """The object of class ``kind`` that ``text`` describes.

    Args:
        kind: a dataclass of the schema.
        text: JSON.
        where: how messages call the text, its file name for example.

    Raises:
        FileFormatError: it is not JSON, of another version, or does not follow the schema; the field is named.
    """
    _check_envelope(kind, _json(text, where), where)
    try:
        thing: T = _adapter(kind).validate_json(f"[{text}]")[0]
    except ValidationError as error:
        raise FileFormatError(_first_fault(error, where), detail=_other_faults(error)) from None
    return thing


def load(kind: type[T], path: str | Path) -> T:
    """The object of class ``kind`` in the file ``path``.

    Raises:
        FileFormatError: the file cannot be read, or is not what it should be.
    """
    path = Path(path)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_FILE_BYTES:
            raise FileFormatError(
                f"{path} has {size_bytes} bytes, more than the {MAX_FILE_BYTES} that any {_word(kind)} takes: "
                f"is it the right file?"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}; give a {_word(kind)} file") from None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a {_word(kind)}: byte {error.start} is no UTF-8 text") from None
    return parse(kind, text, where=str(path))


def save(thing: object, path: str | Path) -> None:
    """Writes ``thing`` to ``path``; a reader sees the old file or the whole new one, never a part.

    Raises:
        UsageError: the file cannot be written.
    """
    write_text(dump(thing), path)


def write_text(text: str, path: str | Path) -> None:
    """Writes ``text`` aside and renames it to ``path``; a pipe or a device is written in place.

    Raises:
        UsageError: the file cannot be written.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="utf-8")
        else:
            _replace(text, path.resolve())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}; give another file with -o") from None


def save_plan(plan: Plan, path: str | Path) -> None:
    """Writes a plan to a JSON file.

    Raises:
        UsageError: the file cannot be written.
    """
    save(plan, path)


def load_plan(path: str | Path) -> Plan:
    """The plan in a JSON file.

    Raises:
        FileFormatError: the file cannot be read, or is not a plan of this version.
    """
    return load(Plan, path)


def load_profile(path: str | Path) -> Profile:
    """The profile in a JSON file.

    Raises:
        FileFormatError: the file cannot be read, or is not a profile.
    """
    return load(Profile, path)


def load_measurement(path: str | Path) -> Measurement:
    """The measurement in a JSON file.

    Raises:
        FileFormatError: the file cannot be read, or is not a measurement of this version.
    """
    return load(Measurement, path)


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    hashable: Any = kind  # mypy does not see that a class is
    return _make_adapter(hashable)


@cache
def _make_adapter(kind: Any) -> TypeAdapter[Any]:
    # pydantic takes no config for a plain dataclass, but hands the config of a surrounding tuple down to it.
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return TypeAdapter(tuple[kind], config=config)


def _replace(text: str, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _json(text: str, where: str) -> object:
    def refuse(word: str) -> NoReturn:
        raise FileFormatError(f"{where} holds the number {word}, which no field can have; write the file anew")

    loads: Callable[..., object] = json.loads
    try:
        return loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        what = "ends too early (truncated?)" if ended else "is not JSON"
        raise FileFormatError(
            f"{where} {what}: {error.msg} at line {error.lineno}, column {error.colno}; write the file anew"
        ) from None
    except RecursionError:
        raise FileFormatError(f"{where} is nested too deeply to be one of our files") from None
    except ValueError as error:  # an integer of more digits than Python reads
        raise FileFormatError(f"{where} holds a number that cannot be read: {error}") from None


def _check_envelope(kind: type[Any], data: object, where: str) -> None:
    if not isinstance(data, dict):
        raise FileFormatError(f"{where} is not a {_word(kind)}: it holds a JSON {_json_word(data)}, not an object")
    names = {field.name for field in dataclasses.fields(kind)}
    version = data.get("format_version", FORMAT_VERSION)
    if "format_version" in names and (isinstance(version, bool) or version != FORMAT_VERSION):
        raise FileFormatError(
            f"{where} is of format version {version!r}, this autopart reads version {FORMAT_VERSION}: "
            f"make the {_word(kind)} anew with this autopart, or use the one that wrote it"
        )
    for word, other in _KINDS.items():
        others = {field.name for field in dataclasses.fields(other)}
        if other is not kind and others - {"format_version"} <= set(data):
            raise FileFormatError(f"{where} is a {word}, not a {_word(kind)}; give a {_word(kind)} file")


def _word(kind: type[Any]) -> str:
    return next((word for word, known in _KINDS.items() if known is kind), kind.__name__)


def _json_word(data: object) -> str:
    words = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return words[type(data)]


def _first_fault(error: ValidationError, where: str) -> str:
    faults = error.errors(include_url=False)
    more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{where}: {_fault(faults[0])}{more}; mend the field or write the file anew"


def _other_faults(error: ValidationError) -> str:
    return "\n".join(_fault(fault) for fault in error.errors(include_url=False)[1:10])


def _fault(fault: Any) -> str:
    path = ".".join(str(step) for step in fault["loc"][1:])
    words = {"unexpected_keyword_argument": "unknown field", "missing": "missing field"}
    what = words.get(fault["type"], str(fault["msg"]).removeprefix("Value error, "))
    value = f" (here {fault['input']!r})" if isinstance(fault["input"], str | int | float) else ""
    if fault["type"] in words:
        value = ""
    return f"{path}: {what}{value}" if path else f"{what}{value}"
