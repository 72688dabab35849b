"""Sets of devices side by side: as text, Markdown and comma-separated values."""

from __future__ import annotations

import dataclasses

from tabulate import tabulate

from autopart.reporting.tables import heading, percent, rate, separated, table, usd
from autopart.schema.comparison import Added, Comparison, DeviceSet
from autopart.units import format_bytes, format_seconds

__all__ = ["comparison_csv", "comparison_markdown", "comparison_text"]

_WORDS = ("", "devices", "bottleneck", "each adds")
"""headers of columns with words"""
_CRITERIA = {"throughput": "throughput", "latency": "latency", "rent": "rent", "devices": "number of devices"}


def comparison_text(comparison: Comparison) -> str:
    """The verdict, the sets in a table, those on which nothing fits with the reason."""
    rows = [_row(each, comparison) for each in comparison.sets if each.fits]
    headers = _headers(comparison)
    paragraphs = (
        _verdict(comparison),
        heading(
            f"{comparison.model}: {_work(comparison)} "
            f"(times {_origins(comparison)}; * no other set is better by {_what_counts(comparison)}"
            f"{'' if comparison.requests else '; latency is of one micro-batch'})",
            table(headers, rows, words=[headers.index(word) for word in _WORDS]) if rows else "",
        ),
        heading("Left out by their plans", _left_out(comparison)),
        heading("Does not fit", "\n".join(f"  {row.name}: {row.reason}" for row in comparison.sets if not row.fits)),
        heading("Not looked at", "\n".join(f"  {each}" for each in comparison.remarks)),
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """The same as a Markdown table; a set on which nothing fits has the reason in its row."""
    headers = _headers(comparison)
    gap = [""] * (len(headers) - 4)
    rows = [
        list(map(_cell, _row(each, comparison) if each.fits
                 else ("", each.name, *gap, f"does not fit: {each.reason}", "")))
        for each in comparison.sets
    ]
    align = ["left" if header in _WORDS else "right" for header in headers]
    grid = tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)
    return f"{_cell(_verdict(comparison))}\n\n{grid}\n" + "".join(f"\n{_cell(each)}\n" for each in comparison.remarks)


def comparison_csv(comparison: Comparison, delimiter: str = ",") -> str:
    """One row per set with all its figures, in base units, under a header of field names."""
    names = [field.name for field in dataclasses.fields(DeviceSet)]
    return separated(names, [[_plain(getattr(each, name)) for name in names] for each in comparison.sets], delimiter)


def _work(comparison: Comparison) -> str:
    job, requests = comparison.job, comparison.requests
    if requests is not None:
        return (
            f"generation, {requests.concurrency} requests at once, {requests.prompt_tokens} tokens of prompt and "
            f"{requests.new_tokens} new, weights {requests.weights}"
        )
    return f"{'training' if job.mode == 'train' else 'inference'}, batch {job.batch}"


def _sample(comparison: Comparison) -> str:
    return "tokens" if comparison.requests else "samples"


def _headers(comparison: Comparison) -> list[str]:
    generates, tokens = comparison.requests is not None, comparison.tokens_per_sample is not None
    return [
        "", "devices", "throughput", *(["first token", "each token"] if generates else ["latency"]), "bubble",
        "least free", "$/h", f"$/million {_sample(comparison)}", *(["$/million tokens"] if tokens else []),
        "bottleneck", "each adds",
    ]


def _verdict(comparison: Comparison) -> str:
    fitting = [each for each in comparison.sets if each.fits]
    if not fitting:
        number = len(comparison.sets)
        return f"None of the {number} sets can hold the model." if number > 1 else "The set cannot hold the model."
    fastest = max(fitting, key=lambda each: each.throughput_per_second or 0.0)
    text = f"Fastest: {fastest.name}, {rate(fastest.throughput_per_second or 0.0, _sample(comparison))}"
    priced = [each for each in fitting if each.cost_per_million is not None]
    if priced:
        cheapest = min(priced, key=lambda each: each.cost_per_million or 0.0)
        each = _sample(comparison).removesuffix("s")
        text += f"; cheapest per {each}: {cheapest.name}, {usd(cheapest.cost_per_million or 0.0)} $ a million"
    return text + "."


def _row(each: DeviceSet, comparison: Comparison) -> tuple[str, ...]:
    """A set that fits, in the columns of ``_headers``."""
    return (
        "*" if each.pareto else "",
        each.name,
        rate(each.throughput_per_second or 0.0, _sample(comparison)),
        format_seconds(each.latency_seconds or 0.0),
        *([format_seconds(each.step_token_seconds or 0.0)] if comparison.requests else []),
        percent(each.bubble_fraction or 0.0, digits=0),
        f"{format_bytes(each.headroom_bytes or 0)} ({percent(each.headroom_share or 0.0, digits=0)})",
        *map(_usd, (each.rent_usd_per_hour, each.cost_per_million)),
        *([_usd(each.cost_per_million_tokens)] if comparison.tokens_per_sample is not None else []),
        each.bottleneck,
        ", ".join(_added(added) for added in each.adds),
    )


def _usd(amount: float | None) -> str:
    return "" if amount is None else usd(amount)


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
