"""Reads the JSON of github.com/msr-fiddle/dnn-partitioning (throughput-inputs) from strangers: every field is doubted.

``maxSizePerFPGA``, ``maxFPGAs``, ``maxCPUs``, ``nodes`` (``id``, ``supportedOnFpga``, ``cpuLatency``, ``fpgaLatency``,
``isBackwardNode``, ``size`` and ``colorClass``, both optional) and ``edges`` (``sourceId``, ``destId``, ``cost``).
Other fields may be there and are not read; the format says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from autopart.errors import FileFormatError
from autopart.schema.store import MAX_FILE_BYTES
from autopart.schema.workload import Workload, WorkloadAnswer, WorkloadEdge, WorkloadNode

__all__ = ["dump_answer", "load_workload", "parse_workload"]


def load_workload(path: str | Path) -> Workload:
    """The workload in a JSON file.

    Raises:
        FileFormatError: the file cannot be read, or is no workload; the field is named.
    """
    try:
        if (size_bytes := Path(path).stat().st_size) > MAX_FILE_BYTES:
            raise FileFormatError(f"{path} has {size_bytes} bytes, more than any workload takes: is it the right file?")
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}; give a workload file") from None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no workload: byte {error.start} is no UTF-8 text") from None
    return parse_workload(text, where=str(path))


def parse_workload(text: str, *, where: str = "this text") -> Workload:
    """The workload that ``text`` describes; ``where`` is what messages call it.

    Raises:
        FileFormatError: it is not JSON, a field is missing or of the wrong type, or the graph makes no sense.
    """
    def refuse(word: str) -> NoReturn:
        raise FileFormatError(f"{where} holds the number {word}, which no field can have; write the file anew")

    try:
        data = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        what = "ends too early (truncated?)" if error.pos >= len(text.rstrip()) else "is not JSON"
        at = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise FileFormatError(f"{where} {what}: {at}; write the file anew") from None
    except (RecursionError, ValueError) as error:
        raise FileFormatError(f"{where} cannot be read as a workload: {error}") from None
    try:
        return _workload(data)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}; mend the file") from None


def dump_answer(answer: WorkloadAnswer) -> str:
    """JSON of an answer: objective, bound, gap, outcome, solve_seconds, and node ids (as strings) with their devices.

    The gap is null where the bound is zero and the objective is not.
    """
    fields = {
        "objective": answer.objective,
        "bound": answer.bound,
        "gap": answer.gap if math.isfinite(answer.gap) else None,
        "outcome": answer.outcome,
        "solve_seconds": answer.solve_seconds,
        "assignment": {str(node): device for node, device in answer.assignment},
    }
    return json.dumps(fields, indent=2, allow_nan=False) + "\n"


def _workload(data: object) -> Workload:
    return Workload(
        num_accelerators=_field(data, "maxFPGAs", "", _whole),
        num_cpus=_field(data, "maxCPUs", "", _whole),
        accelerator_bytes=_field(data, "maxSizePerFPGA", "", _number),
        nodes=tuple(_node(each, f"nodes.{index}.") for index, each in enumerate(_field(data, "nodes", "", _array))),
        edges=tuple(_edge(each, f"edges.{index}.") for index, each in enumerate(_field(data, "edges", "", _array))),
    )


def _node(data: object, path: str) -> WorkloadNode:
    return WorkloadNode(
        id=_field(data, "id", path, _whole),
        cpu_time=_field(data, "cpuLatency", path, _number),
        accelerator_time=_field(data, "fpgaLatency", path, _number),
        bytes=_field(data, "size", path, _number, 0.0),
        accelerator_allowed=_field(data, "supportedOnFpga", path, _flag),
        backward=_field(data, "isBackwardNode", path, _flag),
        color_class=_field(data, "colorClass", path, _whole, None),
    )


def _edge(data: object, path: str) -> WorkloadEdge:
    return WorkloadEdge(
        source=_field(data, "sourceId", path, _whole),
        target=_field(data, "destId", path, _whole),
        cost=_field(data, "cost", path, _number),
    )


_REQUIRED = object()


def _field(data: object, name: str, path: str, read: Callable[[object], Any], default: object = _REQUIRED) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{path.rstrip('.') or 'the file'} is not a JSON object")
    if name not in data and default is _REQUIRED:
        raise ValueError(f"{path}{name}: missing field")
    if name not in data or (data[name] is None and default is not _REQUIRED):
        return default
    try:
        return read(data[name])
    except (TypeError, OverflowError):
        kinds: dict[object, str] = {_whole: "a whole number", _number: "a finite number", _flag: "true, false, 0 or 1"}
        kind = kinds.get(read, "an array")
        raise ValueError(f"{path}{name}: must be {kind} (here {_shown(data[name])})") from None


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError
    return int(value)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise TypeError
    return bool(value)


def _array(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError
    return value
