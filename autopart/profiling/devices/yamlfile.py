"""Read a YAML file that a stranger may have written, by a schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from autopart.errors import DeviceError, FileFormatError
from autopart.units import format_bytes

__all__ = ["read_yaml"]

MAX_FILE_BYTES = 2**20

Rows = TypeVar("Rows", bound=BaseModel)


def read_yaml(path: Path, schema: type[Rows], *, what: str) -> Rows:
    """What a YAML (or JSON, which is YAML too) file says, as ``schema``.

    Args:
        path: of the file; it is loaded without running anything in it.
        schema: a pydantic model that forbids unknown fields.
        what: the sort of file, for the messages: "cluster file".

    Raises:
        FileFormatError: it cannot be read, is too large, or is not YAML.
        DeviceError: a field is unknown, missing or wrong; file and field are named.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FileFormatError(f"{path} is larger than {format_bytes(MAX_FILE_BYTES)}: this is no {what}")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path}: {error.strerror or error}; give the path of a {what}") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a text file in UTF-8; give the path of a {what}") from error
    except yaml.YAMLError as error:
        raise FileFormatError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise FileFormatError(f"{path} is nested too deeply: this is no {what}") from error
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise DeviceError(f"{path}: {'; '.join(_faults(error))}") from error


def _faults(error: ValidationError) -> Iterator[str]:
    """One phrase per wrong field, each once (of a union pydantic lists every branch)."""
    told = set()
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"] if part not in ("str", "int", "float", "_FigureRow"))
        if where not in told:
            told.add(where)
            unknown = fault["type"] == "extra_forbidden"
            yield f"{where or 'the file'}: {'unknown field' if unknown else fault['msg']}"
