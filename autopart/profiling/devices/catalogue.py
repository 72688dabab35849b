"""The kinds of devices and links that autopart knows, read from profiles/*.yaml."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import combinations
from pathlib import Path

import yaml

from autopart.errors import DeviceError
from autopart.profiling.devices.rows import FigureRow, Row
from autopart.schema.device import Cluster, Figure, Kind, LinkKind, Peak
from autopart.units import parse_bytes, parse_bytes_per_second, parse_flops_per_second, parse_seconds

__all__ = ["kind", "kind_called_by_torch", "kind_in", "kinds", "link_kind", "link_kinds", "read_shipped"]

MEMORY_TOLERANCE = 0.12
"""A card reports this much more or less memory than its data sheet says (ECC, GB for GiB)."""


class _KindRow(Row):
    name: str
    vendor: str
    architecture: str
    year: int | None
    torch_names: tuple[str, ...] = ()
    link: str
    host_link: str
    memory: FigureRow
    bandwidth: FigureRow
    peaks: Mapping[str, FigureRow]
    link_bandwidth: FigureRow | None = None
    tdp_watts: FigureRow | None = None
    num_units: FigureRow | None = None
    price_usd: FigureRow | None = None
    rent_usd_per_hour: FigureRow | None = None


class _KindFile(Row):
    sources: Mapping[str, str]
    kinds: tuple[_KindRow, ...]


class _LinkRow(Row):
    name: str
    latency: FigureRow
    bandwidth: FigureRow
    efficiency: FigureRow


class _LinkFile(Row):
    sources: Mapping[str, str]
    links: tuple[_LinkRow, ...]


@cache
def kinds() -> tuple[Kind, ...]:
    """All kinds of the catalogue, in the order of the file."""
    file = _kind_file()
    return tuple(_read_kind(row, file.sources) for row in file.kinds)


@cache
def link_kinds() -> tuple[LinkKind, ...]:
    """All link kinds of the catalogue, in the order of the file."""
    file = _LinkFile.model_validate(read_shipped("links.yaml"))
    return tuple(
        LinkKind(
            name=row.name,
            latency_seconds=_figure(row.latency, parse_seconds(row.latency.value), file.sources),
            bandwidth_bytes_per_second=_figure(
                row.bandwidth, parse_bytes_per_second(row.bandwidth.value), file.sources
            ),
            efficiency=_figure(row.efficiency, float(row.efficiency.value), file.sources),
        )
        for row in file.links
    )


def kind(name: str, own: Sequence[Kind] = ()) -> Kind:
    """The kind that ``name`` stands for: its name, or words of it (``4090``, ``rtx4090``, ``a30``).

    Args:
        name: as people type it.
        own: kinds of the user's own; one that is called as a kind of the catalogue stands in its place.

    Raises:
        DeviceError: no kind is called so, or several may be meant; the message lists the candidates.
    """
    known = {kind.name: kind for kind in (*kinds(), *own)}
    wanted = _squeeze(name)
    whole = [known_name for known_name in known if _squeeze(known_name) == wanted]
    meant = whole or [known_name for known_name in known if wanted in _spellings(known_name)]
    if len(meant) == 1:
        return known[meant[0]]
    if meant:
        raise DeviceError(f"{name!r} may be {', '.join(meant[:12])}; say which")
    near = difflib.get_close_matches(name.casefold(), list(known), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise DeviceError(f"no device kind is called {name!r}; {hint}`autopart devices` lists all {len(known)}")


def link_kind(name: str) -> LinkKind:
    """The link kind of this name.

    Raises:
        DeviceError: there is none; the message lists them all.
    """
    for known in link_kinds():
        if known.name == name:
            return known
    raise DeviceError(f"no link kind is called {name!r}; there are {', '.join(known.name for known in link_kinds())}")


def kind_in(cluster: Cluster, name: str) -> Kind | None:
    """The kind ``name`` of a cluster: the user's own first, then the catalogue's; None if it is in neither.

    A device that is here and not in the catalogue has no kind on paper: its times are measured.
    """
    for known in (*cluster.kinds, *kinds()):
        if known.name == name:
            return known
    return None


def kind_called_by_torch(torch_name: str, memory_bytes: int) -> Kind | None:
    """The catalogue kind of a card that torch calls ``torch_name``; None if there is none.

    Two cards of one name and different memory (RTX 3080 with 10 and 12 GB) are different kinds.
    """
    names = {row.name for row in _kind_file().kinds if torch_name in row.torch_names}
    for known in kinds():
        size_bytes = known.memory_bytes.value
        if known.name in names and abs(memory_bytes - size_bytes) <= MEMORY_TOLERANCE * size_bytes:
            return known
    return None


@cache
def _kind_file() -> _KindFile:
    return _KindFile.model_validate(read_shipped("devices.yaml"))


def read_shipped(name: str) -> object:
    """The content of a YAML file in profiles/, which lies inside the installed package."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, ten times as fast, where libyaml was there
    content: object = yaml.load((_profiles() / name).read_text(encoding="utf-8"), Loader=loader)
    return content


def _profiles() -> Traversable:
    """Where the YAML files lie: inside the installed package, or beside it in a source checkout."""
    installed = resources.files("autopart") / "profiles"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "profiles"


def _read_kind(row: _KindRow, sources: Mapping[str, str]) -> Kind:
    def plain(figure: FigureRow | None) -> Figure | None:
        return None if figure is None else _figure(figure, float(figure.value), sources)

    def rate(figure: FigureRow | None) -> Figure | None:
        return None if figure is None else _figure(figure, parse_bytes_per_second(figure.value), sources)

    return Kind(
        name=row.name,
        vendor=row.vendor,
        architecture=row.architecture,
        year=row.year,
        memory_bytes=_figure(row.memory, parse_bytes(row.memory.value), sources),
        bandwidth_bytes_per_second=_figure(row.bandwidth, parse_bytes_per_second(row.bandwidth.value), sources),
        peaks=tuple(
            Peak(dtype=dtype, flops_per_second=_figure(peak, parse_flops_per_second(peak.value), sources))
            for dtype, peak in row.peaks.items()
        ),
        link=row.link,
        host_link=row.host_link,
        link_bytes_per_second=rate(row.link_bandwidth),
        tdp_watts=plain(row.tdp_watts),
        num_units=plain(row.num_units),
        price_usd=plain(row.price_usd),
        rent_usd_per_hour=plain(row.rent_usd_per_hour),
    )


def _figure(row: FigureRow, value: float, sources: Mapping[str, str]) -> Figure:
    return Figure(value=value, source=sources[row.source], confidence=row.confidence)


def _squeeze(name: str) -> str:
    """Only letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


@cache
def _spellings(name: str) -> frozenset[str]:
    """What people type for a kind: any of its words, in their order, written together."""
    words = name.split("-")
    return frozenset("".join(some) for num in range(1, len(words) + 1) for some in combinations(words, num))
