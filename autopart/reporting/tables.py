"""How figures, layer ranges and tables are laid out in a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from tabulate import tabulate

from autopart.units import format_count

__all__ = ["facts", "flop", "heading", "layer_range", "percent", "rate", "separated", "table", "times", "usd"]


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (0,)) -> str:
    """A table; the columns numbered in ``words`` are aligned to the left, figures to the right."""
    align = ["left" if column in words else "right" for column in range(len(headers))]
    text = tabulate(
        [list(row) for row in rows], headers=list(headers), tablefmt="simple", disable_numparse=True,
        colalign=align if rows else None,
    )
    return "\n".join(line.rstrip() for line in text.splitlines())


def separated(headers: Sequence[str], rows: Sequence[Sequence[object]], delimiter: str = "\t") -> str:
    """Tab-separated (or other) values under a line of headers; None is empty, and what needs quotes has them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows(["" if each is None else each for each in row] for row in rows)
    return buffer.getvalue()


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Names with what they are, in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)


def heading(title: str, body: str) -> str:
    """A titled paragraph; empty if there is nothing to say."""
    return f"{title}\n{body}" if body else ""


def layer_range(layers: Sequence[str]) -> str:
    """``first … last (number)``, or the name of the only layer."""
    return layers[0] if len(layers) == 1 else f"{layers[0]} … {layers[-1]} ({len(layers)})"


def percent(fraction: float, *, signed: bool = False, digits: int = 1) -> str:
    """A fraction in per cent."""
    return f"{100 * fraction:{'+' if signed else ''}.{digits}f} %"


def rate(samples_per_second: float, what: str = "samples") -> str:
    """A throughput with three significant digits."""
    number = format_count(samples_per_second) if samples_per_second >= 1000 else f"{samples_per_second:.3g}"
    return f"{number} {what}/s"


def flop(count: float, unit: str = "") -> str:
    """A number of floating-point operations: k, M, G, T; format_count's B for 10^9 is not said of them."""
    text = format_count(count).replace("B", "G")
    number = text.rstrip("kMGT")
    return f"{number} {text.removeprefix(number)}{unit}" if unit else text


def times(factor: float) -> str:
    """A ratio: ``1.50x``."""
    return f"{factor:.2f}x"


def usd(amount: float) -> str:
    """US dollars: cents, and where they would show nothing, three digits."""
    return f"{amount:.2f}" if amount >= 0.1 else f"{amount:.3g}"
