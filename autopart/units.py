"""Bytes, seconds and rates: read what people type, print what they like to read.

Inside the package there are only bytes, seconds, bytes per second and FLOP/s.  GB = 10^9 bytes, GiB = 2^30 bytes; a
FLOP counts a multiply-add as two.  Units are read without regard to case wherever that cannot change the meaning
(``20gib``, ``3 MS``); ``gb/s`` is refused, because it may mean bits or bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal

from autopart.errors import UsageError

__all__ = [
    "format_bytes",
    "format_count",
    "format_rate",
    "format_seconds",
    "parse_bytes",
    "parse_bytes_per_second",
    "parse_flops_per_second",
    "parse_seconds",
]

_QUANTITY = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\s*([a-zµμ/]*)\s*", re.IGNORECASE)

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}

_BYTES = {f"{prefix}B": scale for prefix, scale in (_DECIMAL | _BINARY).items()}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_BYTES_PER_SECOND = {
    f"{prefix}{unit}": scale / num_parts
    for prefix, scale in (_DECIMAL | _BINARY).items()
    for unit, num_parts in (("B/s", 1), ("Bps", 1), ("bit/s", 8), ("bps", 8), ("b/s", 8))
}
_FLOPS_PER_SECOND = {
    f"{prefix}{unit}": scale for prefix, scale in _DECIMAL.items() for unit in ("FLOPS", "FLOP/s", "FLOPs")
}


def parse_bytes(text: str | int | float) -> int:
    """Number of bytes in ``20GiB``, ``21 GB``, ``512MiB`` or a plain number of bytes.

    >>> parse_bytes("20GiB")
    21474836480

    Raises:
        UsageError: it is not a positive size.
    """
    num_bytes = round(_parse(text, _BYTES, "a size", "20GiB, 21GB, 512MiB or a number of bytes"))
    if num_bytes == 0:
        raise UsageError(f"{text!r} is less than one byte; write 20GiB, 21GB, 512MiB or a number of bytes")
    return num_bytes


def parse_seconds(text: str | int | float, *, zero_allowed: bool = False) -> float:
    """Seconds in ``80us``, ``3 ms``, ``1.5 s``, ``2min`` or a plain number of seconds.

    >>> parse_seconds("3 ms")
    0.003

    Raises:
        UsageError: it is not a positive time (or zero, where that is allowed).
    """
    return _parse(text, _SECONDS, "a time", "80us, 3ms, 1.5s, 2min or a number of seconds", zero_allowed)


def parse_bytes_per_second(text: str | int | float) -> float:
    """Bytes per second in ``25GB/s``, ``10Gbit/s``, ``600 MiB/s`` or a plain number of bytes per second.

    >>> parse_bytes_per_second("10Gbit/s")
    1250000000.0

    Raises:
        UsageError: it is not a positive rate, or it may mean bits as well as bytes.
    """
    return _parse(text, _BYTES_PER_SECOND, "a bandwidth", "25GB/s, 10Gbit/s or a number of bytes per second")


def parse_flops_per_second(text: str | int | float) -> float:
    """FLOP/s in ``10 TFLOPS``, ``10e12`` or a plain number.

    >>> parse_flops_per_second("82.6 TFLOPS")
    82600000000000.0

    Raises:
        UsageError: it is not a positive rate.
    """
    return _parse(text, _FLOPS_PER_SECOND, "a compute rate", "82.6TFLOPS, 10e12 or a number of FLOP/s")


def format_bytes(num_bytes: float) -> str:
    """A size with three significant digits, in decimal units.

    >>> format_bytes(17_200_000_000), format_bytes(512)
    ('17.2 GB', '512 B')
    """
    return _format(num_bytes, {f" {prefix}B": scale for prefix, scale in _DECIMAL.items()}, integral=True)


def format_seconds(seconds: float) -> str:
    """A time with three significant digits, from nanoseconds to hours.

    >>> format_seconds(80e-6), format_seconds(0.25), format_seconds(150)
    ('80.0 us', '250 ms', '2.50 min')
    """
    return _format(seconds, {f" {unit}": _SECONDS[unit] for unit in ("ns", "us", "ms", "s", "min", "h")})


def format_rate(bytes_per_second: float) -> str:
    """A bandwidth with three significant digits, in decimal units.

    >>> format_rate(25e9)
    '25.0 GB/s'
    """
    return _format(bytes_per_second, {f" {prefix}B/s": scale for prefix, scale in _DECIMAL.items()})


def format_count(count: float) -> str:
    """A count as people say it: k, M, B (10^9), T (10^12).

    >>> format_count(124_439_808), format_count(1_557_611_200), format_count(12)
    ('124M', '1.56B', '12')
    """
    return _format(count, {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, integral=True)


def _parse(
    text: str | int | float, units: Mapping[str, float], what: str, forms: str, zero_allowed: bool = False
) -> float:
    """The quantity in base units; a plain number is in base units already."""
    match = None if isinstance(text, bool) else _QUANTITY.fullmatch(str(text))
    scale = _scale(match[3], units) if match else None
    if match is None or scale is None:
        raise UsageError(f"{text!r} is not {what}; write {forms}")
    number = match[1] + (match[2] or "")
    value = float(number) * scale
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
        raise UsageError(f"{text!r} is not a positive, finite value for {what}; write {forms}")
    return float(Decimal(number) * Decimal(repr(scale)))  # 5us is 5e-6, not 4.9999999999999996e-6


def _scale(unit: str, units: Mapping[str, float]) -> float | None:
    """How many base units ``unit`` is: as spelled, else in any case if all spellings agree; None if it is unknown."""
    if not unit:
        return 1.0
    if unit in units:
        return units[unit]
    scales = {scale for name, scale in units.items() if name.casefold() == unit.casefold()}
    return scales.pop() if len(scales) == 1 else None


def _format(value: float, units: Mapping[str, float], *, integral: bool = False) -> str:
    """``value`` in the largest unit that leaves at least 1, three significant digits; units ascend."""
    if not math.isfinite(value):
        return str(value)
    names = list(units)
    fitting = [name for name in names if abs(value) >= units[name]]
    name = fitting[-1] if fitting else names[0]
    following = names[names.index(name) + 1 :]
    if following and float(f"{abs(value) / units[name]:.3g}") * units[name] >= units[following[0]]:
        name = following[0]  # 999.9 MB reads 1.00 GB, not 1000 MB
    scaled = value / units[name]
    if scaled == 0 or (integral and units[name] == 1):
        return f"{scaled:.0f}{name if scaled else _base_unit(units)}"
    num_decimals = max(0, 2 - math.floor(math.log10(abs(float(f"{scaled:.3g}")))))
    return f"{scaled:.{num_decimals}f}{name}"


def _base_unit(units: Mapping[str, float]) -> str:
    """The unit that nothing is printed in: 0 s rather than 0 ns."""
    return next(name for name, scale in units.items() if scale == 1)
