"""Device kinds of the user's own: from a file beside the model, and from the user's config directory.

The file has the fields of profiles/devices.yaml, only name, memory, bandwidth and peaks must be there, and a figure may
be a plain value::

    kinds:
    - {name: my-card, memory: 24GB, bandwidth: 900GB/s, peaks: {float32: 30TFLOPS, fp16: 120TFLOPS}, tdp_watts: 300}
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

from autopart.errors import DeviceError, UsageError
from autopart.profiling.devices.catalogue import link_kind
from autopart.profiling.devices.linkrules import UNKNOWN_HOST_LINK
from autopart.profiling.devices.yamlfile import read_yaml
from autopart.schema.device import Figure, Kind, Peak
from autopart.units import parse_bytes, parse_bytes_per_second, parse_flops_per_second

__all__ = ["BESIDE_MODEL", "DTYPES", "config_file", "own_kinds"]

BESIDE_MODEL = "autopart-devices.yaml"

DTYPES = {
    "fp64": "float64",
    "fp32": "float32",
    "tf32": "tf32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp8": "float8",
    "int8": "int8",
}
"""What people call the data types of a peak, beside the names that torch gives them."""

_Quantity = StrictStr | StrictInt | StrictFloat


class _FigureRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    value: _Quantity
    source: str = ""
    confidence: Literal["high", "medium", "low"] = "medium"


_Given = _Quantity | _FigureRow


class _KindRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    vendor: str = "given"
    architecture: str = "given"
    year: int | None = None
    link: str = UNKNOWN_HOST_LINK
    host_link: str = UNKNOWN_HOST_LINK
    memory: _Given
    bandwidth: _Given
    peaks: Annotated[Mapping[str, _Given], Field(min_length=1)]
    link_bandwidth: _Given | None = None
    tdp_watts: _Given | None = None
    num_units: _Given | None = None
    price_usd: _Given | None = None
    rent_usd_per_hour: _Given | None = None


class _KindFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    sources: Mapping[str, str] = {}
    kinds: tuple[_KindRow, ...]


def own_kinds(folder: Path | None = None) -> tuple[Kind, ...]:
    """The user's own kinds; every figure's source begins with "user".

    Args:
        folder: where ``autopart-devices.yaml`` may lie, the model's; None for none.

    Returns:
        Those of the folder, then those of the config directory that have other names.

    Raises:
        FileFormatError: a file that is there cannot be read, or is not YAML.
        DeviceError: a field is unknown, missing or wrong; file and field are named.
    """
    beside = _read(folder / BESIDE_MODEL) if folder is not None else ()
    names = {kind.name for kind in beside}
    return (*beside, *(kind for kind in _read(config_file()) if kind.name not in names))


def config_file() -> Path:
    """Where the user's kinds lie: $XDG_CONFIG_HOME/autopart/devices.yaml, else under ~/.config."""
    shared = os.environ.get("XDG_CONFIG_HOME")
    return (Path(shared) if shared else Path.home() / ".config") / "autopart" / "devices.yaml"


def _read(path: Path) -> tuple[Kind, ...]:
    if not os.path.lexists(path):
        return ()
    file = read_yaml(path, _KindFile, what="device file")
    for name, num_times in Counter(row.name for row in file.kinds).items():
        if num_times > 1:
            raise DeviceError(f"{path}: the kind {name} is there {num_times} times; keep one of them")
    kinds = []
    for index, row in enumerate(file.kinds):
        try:
            kinds.append(_kind(row, _Figures(path, file.sources)))
        except UsageError as error:
            raise DeviceError(f"{path}: kinds.{index} ({row.name}): {error}") from error
    return tuple(kinds)


class _Figures:
    """Reads a file's figures, and notes on each that it is the user's."""

    def __init__(self, path: Path, sources: Mapping[str, str]) -> None:
        self._path, self._sources = path, sources

    def read(self, given: _Given, parse: Callable[[_Quantity], float]) -> Figure:
        row = given if isinstance(given, _FigureRow) else _FigureRow(value=given)
        said = self._sources.get(row.source, row.source)
        source = f"user, {self._path.name}" + (f": {said}" if said else "")
        return Figure(value=parse(row.value), source=source, confidence=row.confidence)

    def read_if_there(self, given: _Given | None, parse: Callable[[_Quantity], float]) -> Figure | None:
        return None if given is None else self.read(given, parse)


def _kind(row: _KindRow, figures: _Figures) -> Kind:
    return Kind(
        name=row.name,
        vendor=row.vendor,
        architecture=row.architecture,
        year=row.year,
        memory_bytes=figures.read(row.memory, parse_bytes),
        bandwidth_bytes_per_second=figures.read(row.bandwidth, parse_bytes_per_second),
        peaks=tuple(
            Peak(dtype=_dtype(name), flops_per_second=figures.read(given, parse_flops_per_second))
            for name, given in row.peaks.items()
        ),
        link=link_kind(row.link).name,
        host_link=link_kind(row.host_link).name,
        link_bytes_per_second=figures.read_if_there(row.link_bandwidth, parse_bytes_per_second),
        tdp_watts=figures.read_if_there(row.tdp_watts, _positive),
        num_units=figures.read_if_there(row.num_units, _positive),
        price_usd=figures.read_if_there(row.price_usd, _positive),
        rent_usd_per_hour=figures.read_if_there(row.rent_usd_per_hour, _positive),
    )


def _dtype(name: str) -> str:
    if name not in DTYPES and name not in DTYPES.values():
        raise DeviceError(f"peaks: unknown data type {name!r}; known are {', '.join(DTYPES)}")
    return DTYPES.get(name, name)


def _positive(value: _Quantity) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise DeviceError(f"{value!r} is not a number above 0")
    return number
