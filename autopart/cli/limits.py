"""The options of ``autopart plan`` that limit its time and price, and how many plans it gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from autopart.errors import UsageError

__all__ = ["MaxPrice", "MaxStepTime", "Rents", "Top", "rents", "usd_per_hour"]

MaxStepTime = Annotated[str | None, typer.Option(
    "--max-step-time", metavar="TIME", help="a step may not take longer: 0.5s, 80ms"
)]
MaxPrice = Annotated[str | None, typer.Option(
    "--max-price", metavar="USD", help="the devices in use may not cost more an hour: 4, 4$/h"
)]
Rents = Annotated[list[str] | None, typer.Option(
    "--rent", metavar="DEVICE=USD", help="an hour's rent of a device or kind, cuda:0=0.50$/h; may come again"
)]
Top = Annotated[int | None, typer.Option(
    "--top", min=1, metavar="K", help="the K best really different plans, and what each trades; -o writes the best"
)]

_USD = re.compile(r"\s*\$?\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:\$|usd)?\s*(?:/\s*h)?\s*", re.IGNORECASE)


def usd_per_hour(text: str, option: str) -> float:
    """US dollars an hour in ``text``, the value of ``option``.

    >>> usd_per_hour("0.50 $/h", "--max-price")
    0.5

    Raises:
        UsageError: it is no amount of money.
    """
    match = _USD.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text!r} is not US dollars an hour; write for example 0.50$/h")
    return float(match[1])


def rents(texts: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    """DEVICE=USD as pairs.

    Raises:
        UsageError: a text is none.
    """
    found = []
    for text in texts or ():
        name, sign, amount = text.rpartition("=")
        if not sign:
            raise UsageError(f"--rent {text!r} is not DEVICE=USD; give for example --rent cuda:0=0.50$/h")
        found.append((name, usd_per_hour(amount, "--rent")))
    return tuple(found)
