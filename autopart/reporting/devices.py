"""Devices in words: what is here, and what the catalogue knows with its sources."""

from __future__ import annotations

from collections.abc import Sequence

from autopart.reporting.tables import facts, flop, heading, separated, table
from autopart.schema.device import Device, Figure, Kind
from autopart.units import format_bytes, format_rate

__all__ = ["devices_text", "devices_tsv", "kind_text"]

_TABLE_DTYPES = ("float32", "float16", "bfloat16")


def devices_text(here: Sequence[Device], kinds: Sequence[Kind]) -> str:
    """The devices of this machine, then the catalogue's kinds by year."""
    usable = [
        (each.name, each.kind, format_bytes(each.memory_bytes), each.memory_origin) for each in here
    ]
    known = [
        (kind.name, str(kind.year or ""), format_bytes(kind.memory_bytes.value),
         format_rate(kind.bandwidth_bytes_per_second.value), *(_peak(kind, dtype) for dtype in _TABLE_DTYPES),
         _dollars(kind.rent_usd_per_hour))
        for kind in sorted(kinds, key=lambda kind: (kind.vendor, kind.year or 0, kind.name))
    ]
    headers = ("kind", "year", "memory", "bandwidth", *_TABLE_DTYPES, "rent/h")
    return "\n\n".join((
        heading("Here", table(("device", "kind", "memory", "where that comes from"), usable, words=(0, 1, 3))),
        heading(
            "Catalogue (dense peaks in FLOP/s; `autopart devices show KIND` gives the sources)", table(headers, known)
        ),
    )) + "\n"


def devices_tsv(here: Sequence[Device], kinds: Sequence[Kind]) -> str:
    """The same as tab-separated values in base units, what is here first."""
    headers = (
        "name", "kind", "here", "memory_bytes", "bandwidth_bytes_per_second",
        *(f"{dtype}_flops_per_second" for dtype in _TABLE_DTYPES), "rent_usd_per_hour",
    )
    rows: list[tuple[object, ...]] = [
        (each.name, each.kind, "yes", each.memory_bytes, "", *("" for _ in _TABLE_DTYPES), each.rent_usd_per_hour)
        for each in here
    ]
    for kind in sorted(kinds, key=lambda kind: (kind.vendor, kind.year or 0, kind.name)):
        peaks = {peak.dtype: peak.flops_per_second.value for peak in kind.peaks}
        rent = None if kind.rent_usd_per_hour is None else kind.rent_usd_per_hour.value
        rows.append((
            kind.name, kind.name, "no", round(kind.memory_bytes.value), kind.bandwidth_bytes_per_second.value,
            *(peaks.get(dtype, "") for dtype in _TABLE_DTYPES), rent,
        ))
    return separated(headers, rows)


def kind_text(kind: Kind) -> str:
    """One kind of the catalogue, every figure with its source and how much it is to be trusted."""
    rows = [
        ("memory", format_bytes(kind.memory_bytes.value), kind.memory_bytes),
        ("bandwidth", format_rate(kind.bandwidth_bytes_per_second.value), kind.bandwidth_bytes_per_second),
        *((f"{peak.dtype} peak", flop(peak.flops_per_second.value, "FLOP/s"), peak.flops_per_second)
          for peak in kind.peaks),
    ]
    if kind.link_bytes_per_second is not None:
        rows.append(("link", format_rate(kind.link_bytes_per_second.value), kind.link_bytes_per_second))
    if kind.tdp_watts is not None:
        rows.append(("power", f"{kind.tdp_watts.value:g} W", kind.tdp_watts))
    if kind.price_usd is not None:
        rows.append(("price", f"{kind.price_usd.value:,.0f} US dollars", kind.price_usd))
    if kind.rent_usd_per_hour is not None:
        rows.append(("rent", f"{_dollars(kind.rent_usd_per_hour)} US dollars/h", kind.rent_usd_per_hour))
    head = facts([
        ("vendor", kind.vendor), ("architecture", kind.architecture), ("year", str(kind.year or "unknown")),
        ("link to its like", kind.link), ("link to the host", kind.host_link),
    ])
    figures = [(name, value, figure.confidence, figure.source) for name, value, figure in rows]
    return f"{kind.name}\n{head}\n\n{table(('figure', 'value', 'confidence', 'source'), figures, words=(0, 2, 3))}\n"


def _peak(kind: Kind, dtype: str) -> str:
    for peak in kind.peaks:
        if peak.dtype == dtype:
            return flop(peak.flops_per_second.value)
    return ""


def _dollars(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.2f}"
