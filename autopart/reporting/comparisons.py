"""Sets of devices side by side: as text, Markdown and comma-separated values."""

from __future__ import annotations

import csv
import dataclasses
import io

from tabulate import tabulate

from autopart.reporting.tables import heading, percent, rate, table
from autopart.schema.comparison import Added, Comparison, DeviceSet
from autopart.units import format_bytes, format_seconds

__all__ = ["comparison_csv", "comparison_markdown", "comparison_text"]

_HEADERS = (
    "", "devices", "throughput", "latency", "bubble", "least free", "$/h", "$/million", "bottleneck", "each adds",
)
_WORDS = (0, 1, 8, 9)
_CRITERIA = {"throughput": "throughput", "latency": "latency", "rent": "rent", "devices": "number of devices"}


def comparison_text(comparison: Comparison) -> str:
    """The verdict, the sets in a table, those on which nothing fits with the reason."""
    rows = [_row(each) for each in comparison.sets if each.fits]
    job = comparison.job
    paragraphs = (
        _verdict(comparison),
        heading(
            f"{comparison.model}: {'training' if job.mode == 'train' else 'inference'}, batch {job.batch} "
            f"(times {_origins(comparison)}; * no other set is better by {_what_counts(comparison)}; "
            "latency is of one micro-batch)",
            table(_HEADERS, rows, words=_WORDS) if rows else "",
        ),
        heading("Left out by their plans", _left_out(comparison)),
        heading("Does not fit", "\n".join(f"  {row.name}: {row.reason}" for row in comparison.sets if not row.fits)),
        heading("Not looked at", "\n".join(f"  {each}" for each in comparison.remarks)),
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """The same as a Markdown table; a set on which nothing fits has the reason in its row."""
    rows = [
        list(map(_cell, _row(each) if each.fits else ("", each.name, *[""] * 6, f"does not fit: {each.reason}", "")))
        for each in comparison.sets
    ]
    align = ["left" if column in _WORDS else "right" for column in range(len(_HEADERS))]
    grid = tabulate(rows, headers=list(_HEADERS), tablefmt="pipe", disable_numparse=True, colalign=align)
    return f"{_cell(_verdict(comparison))}\n\n{grid}\n" + "".join(f"\n{_cell(each)}\n" for each in comparison.remarks)


def comparison_csv(comparison: Comparison) -> str:
    """One row per set with all its figures, in base units, under a header of field names."""
    names = [field.name for field in dataclasses.fields(DeviceSet)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    for each in comparison.sets:
        writer.writerow([_plain(getattr(each, name)) for name in names])
    return buffer.getvalue()


def _verdict(comparison: Comparison) -> str:
    fitting = [each for each in comparison.sets if each.fits]
    if not fitting:
        number = len(comparison.sets)
        return f"None of the {number} sets can hold the model." if number > 1 else "The set cannot hold the model."
    fastest = max(fitting, key=lambda each: each.throughput_per_second or 0.0)
    text = f"Fastest: {fastest.name}, {rate(fastest.throughput_per_second or 0.0)}"
    priced = [each for each in fitting if each.cost_per_million is not None]
    if priced:
        cheapest = min(priced, key=lambda each: each.cost_per_million or 0.0)
        text += f"; cheapest per sample: {cheapest.name}, {cheapest.cost_per_million or 0.0:.2f} $ a million"
    return text + "."


def _row(each: DeviceSet) -> tuple[str, ...]:
    return (
        "*" if each.pareto else "",
        each.name,
        rate(each.throughput_per_second or 0.0),
        format_seconds(each.latency_seconds or 0.0),
        percent(each.bubble_fraction or 0.0, digits=0),
        f"{format_bytes(each.headroom_bytes or 0)} ({percent(each.headroom_share or 0.0, digits=0)})",
        "" if each.rent_usd_per_hour is None else f"{each.rent_usd_per_hour:.2f}",
        "" if each.cost_per_million is None else f"{each.cost_per_million:.2f}",
        each.bottleneck,
        ", ".join(_added(added) for added in each.adds),
    )


def _added(added: Added) -> str:
    if added.factor is None:
        return f"{added.device}: without it nothing fits"
    return f"{added.device} {percent(added.factor - 1, signed=True, digits=0)}"


def _left_out(comparison: Comparison) -> str:
    return "\n".join(f"  {each.name}: {', '.join(each.left_out)}" for each in comparison.sets if each.left_out)


def _origins(comparison: Comparison) -> str:
    return " and ".join(sorted({each.origin for each in comparison.sets if each.origin})) or "unknown"


def _what_counts(comparison: Comparison) -> str:
    words = [_CRITERIA[criterion] for criterion in comparison.criteria]
    return " and ".join(words)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(
            f"{each.device}:{'' if each.factor is None else each.factor}" if isinstance(each, Added) else str(each)
            for each in value
        )
    return "" if value is None else value


def _cell(text: str) -> str:
    """Text that does not end its cell or its line, and is no markup."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    for mark in "\\|*_`<[":
        clean = clean.replace(mark, f"\\{mark}") if clean != "*" else clean
    return clean
