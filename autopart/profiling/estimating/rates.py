"""What a kind of device sustains, from its data sheet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autopart.profiling.devices.catalogue import kind as kind_called
from autopart.schema.device import Kind

__all__ = ["Rate", "Rates", "rates_of", "steady"]

LAUNCH_SECONDS = 6e-6
"""of one operator inside a model, which the processor sends ahead; between events a lone one shows 26-38 us"""

CPU_LAUNCH_SECONDS = 5e-6
"""assumed: what torch takes to dispatch an operator"""

FALLBACKS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "float16": (("float32", 1.0),),
    "bfloat16": (("float32", 1.0),),
    "tf32": (("float32", 1.0),),
    "float8": (("float16", 1.0), ("bfloat16", 1.0), ("float32", 1.0)),
    "int8": (("float16", 1.0), ("bfloat16", 1.0), ("float32", 1.0)),
    "float32": (("bfloat16", 229 / 1677), ("float16", 229 / 1677)),
    "float64": (("float32", 1 / 32), ("bfloat16", 229 / 1677 / 32), ("float16", 229 / 1677 / 32)),
}
"""A type that the data sheet does not have runs at the rate of the first of these that it has, times the factor.
Without matrix units a half type is computed in float32; float32 beside matrix units only is as on Gaudi 3; float64 is
as on most cards for graphics (those for computing centres are faster)."""

CPU_FALLBACKS: Mapping[str, tuple[tuple[str, float], ...]] = {**FALLBACKS, "float64": (("float32", 1 / 2),)}

WIDENED = ("float16", "bfloat16")
"""Types that libraries compute in float32 where that is faster (GeForce cards before Turing)."""

MATRIX_DTYPES = frozenset({"float16", "bfloat16", "tf32", "float8", "int8"})

NO_MATRIX_UNITS = frozenset({"Pascal", "Apple", "CPU"})
"""architectures and vendors"""

GEFORCE = re.compile(r"rtx-[2-5]0\d0")
GEFORCE_SHARE = 1.35
"""A GeForce card's rate with float32 accumulation is half of what its matrix units can do, and products reach about
all of it, where other cards reach 0.7-0.75 of theirs (models_timm.csv, RTX 3090)."""

POWER_REFERENCES: Mapping[tuple[str, str], str] = {
    ("t4", "float32"): "titan-rtx",
    ("t4", "float16"): "titan-rtx",
    ("p4", "float32"): "gtx-1080ti",
    ("l4", "float32"): "l40s",
    ("l4", "float16"): "l40s",
    ("l4", "bfloat16"): "l40s",
    ("l4", "tf32"): "l40s",
    ("l4", "float8"): "l40s",
    ("a10", "float32"): "rtx-a6000",
    ("a10", "float16"): "rtx-a6000",
    ("a10", "bfloat16"): "rtx-a6000",
    ("a10", "tf32"): "rtx-a6000",
    ("rtx-a4000", "float32"): "rtx-a6000",
    ("rtx-a4000", "float16"): "rtx-a6000",
    ("rtx-a4000", "bfloat16"): "rtx-a6000",
    ("rtx-a4000", "tf32"): "rtx-a6000",
}
"""(card of low power, type) → a card of full power and the same architecture: its FLOP/s per watt cap the other.  Only
the T4's rule could be checked (.40-.42 of peak measured); the rest follows it."""

PROCESS_REFERENCES: Mapping[tuple[str, str], str] = {
    ("titan-rtx", "float32"): "v100-sxm-16gb",
    ("titan-rtx", "float16"): "v100-sxm-16gb",
    ("quadro-rtx-8000", "float32"): "v100-sxm-16gb",
    ("quadro-rtx-8000", "float16"): "v100-sxm-16gb",
}
"""(card whose data sheet promises more FLOP/s per watt than a card of full power from the same process of manufacture,
type) → that card.  Such a card lowers its clock, and with it the voltage: the rate falls with the root of the power
that is short.  Seen in float32 (ops_sailor_train.csv: Titan RTX .77 of peak, V100 .93)."""

SUSTAINED: Mapping[tuple[str, str], float] = {
    ("Pascal", "float32"): 0.8,  # address arithmetic shares the float32 units; P100 reaches .66 of peak, V100 .88
    ("CDNA1", "float32"): 2 * 0.72,  # float32 matrix units at twice the data sheet's vector rate; MI100 .64 of those
    ("CDNA2", "float32"): 2 * 0.72,  # the same units
}
"""(architecture, type) → sustained / data-sheet rate, relative to what the laws expect; 1 where left out"""

UNITS: Mapping[tuple[str, str], float] = {("CDNA1", "float32"): 2.0, ("CDNA2", "float32"): 2.0}
"""the part of ``SUSTAINED`` that the data sheets say: float32 matrix units"""

BANDWIDTH: Mapping[str, float] = {"Pascal": 0.83}
"""architecture → reached share of the bandwidth relative to the laws (V100 white paper: 1.5 times the delivered
bandwidth of the P100 with 1.25 times the data sheet's)"""

INLINE_ECC = frozenset({"t4", "p4", "a10", "a40", "l4", "l40", "l40s"})
"""cards that keep the error-correcting code in the GDDR memory itself, which costs traffic"""

INLINE_ECC_SHARE = 0.9

BIG_BATCH_TILES = frozenset({"Ampere", "Ada", "Hopper", "Blackwell"})
"""architectures whose float32 batched products come in tiles of 128 x 128 only (seen on the A100)"""

LONG_CONTRACTION: Mapping[str, float] = {"Pascal": 7500.0}
"""architecture → length of rows that outgrow its address translation (seen on the P100)"""

FLOPS_PER_UNIT = 0.2e12
"""float32 FLOP/s of one multiprocessor, to guess their number where the data sheet is silent (.17-.20 on P100-A100)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """FLOP/s of one data type, before an operator family's efficiency."""

    dtype: str
    sustained: float
    burst: float
    """for milliseconds, before the power limit bites"""
    note: str
    """what was assumed; empty if the data sheet has the type"""
    on_matrix_units: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the laws need of a device."""

    launch_seconds: float
    bytes_per_second: float
    """the data sheet's bandwidth less what error correction and architecture take"""
    num_units: float
    big_batch_tiles: bool
    long_contraction: float
    """elements of a contraction beyond which a product slows down"""
    by_dtype: tuple[Rate, ...]

    def rate(self, dtype: str) -> Rate:
        """Of a torch data type; complex and integer types count as float32."""
        wanted = "float8" if dtype.startswith("float8") else dtype if dtype in FALLBACKS else "float32"
        return next(row for row in self.by_dtype if row.dtype == wanted)


def rates_of(kind: Kind, *, architecture_factors: bool = True) -> Rates:
    """The rates of a kind for every data type, those that its data sheet lacks by ``FALLBACKS``.

    Args:
        kind: of the catalogue, or the user's own.
        architecture_factors: apply ``SUSTAINED`` and ``BANDWIDTH``; not, to see what they are worth.
    """
    is_cpu = kind.vendor == "CPU"
    factors = BANDWIDTH if architecture_factors else {}
    bandwidth = kind.bandwidth_bytes_per_second.value * factors.get(kind.architecture, 1.0)
    by_dtype = tuple(_rate(kind, dtype, SUSTAINED if architecture_factors else UNITS) for dtype in FALLBACKS)
    full = next(rate.burst for rate in by_dtype if rate.dtype == "float32")
    return Rates(
        launch_seconds=CPU_LAUNCH_SECONDS if is_cpu else LAUNCH_SECONDS,
        bytes_per_second=bandwidth * (INLINE_ECC_SHARE if kind.name in INLINE_ECC else 1.0),
        num_units=kind.num_units.value if kind.num_units else max(1.0, round(full / FLOPS_PER_UNIT)),
        big_batch_tiles=kind.architecture in BIG_BATCH_TILES,
        long_contraction=LONG_CONTRACTION.get(kind.architecture, math.inf),
        by_dtype=by_dtype,
    )


def _rate(kind: Kind, dtype: str, factors: Mapping[tuple[str, str], float]) -> Rate:
    peaks = {peak.dtype: peak.flops_per_second.value for peak in kind.peaks}
    if dtype in peaks and not (dtype in WIDENED and peaks[dtype] < peaks.get("float32", 0.0)):
        return _of_sheet(kind, dtype, peaks[dtype] * factors.get((kind.architecture, dtype), 1.0), dtype, 1.0, "")
    fallbacks = (CPU_FALLBACKS if kind.vendor == "CPU" else FALLBACKS)[dtype]
    for other, factor in fallbacks:
        if other in peaks:
            share = "" if factor == 1 else f"{factor:.3g} x "
            peak = peaks[other] * factors.get((kind.architecture, other), 1.0)
            return _of_sheet(kind, other, peak, dtype, factor, f"{dtype} at {share}the {other} rate")
    other, peak = next(iter(peaks.items()))
    return _of_sheet(kind, other, peak, dtype, 1.0, f"{dtype} at the {other} rate, the only one known")


def _of_sheet(kind: Kind, sheet_dtype: str, peak: float, dtype: str, factor: float, note: str) -> Rate:
    burst = factor * peak
    cap = _allowed(kind, sheet_dtype, POWER_REFERENCES)
    matrix = {dtype, sheet_dtype} <= MATRIX_DTYPES and not {kind.architecture, kind.vendor} & NO_MATRIX_UNITS
    if matrix and GEFORCE.match(kind.name):
        burst *= GEFORCE_SHARE
    sustained = burst if cap is None else min(burst, factor * cap)
    if (other := _allowed(kind, sheet_dtype, PROCESS_REFERENCES)) is not None:
        sustained *= math.sqrt(min(1.0, other / peak))
    return Rate(dtype=dtype, sustained=sustained, burst=burst, note=note, on_matrix_units=matrix)


def _allowed(kind: Kind, dtype: str, references: Mapping[tuple[str, str], str]) -> float | None:
    """FLOP/s that the kind's power allows at the efficiency of the reference; None if no rule speaks of the kind."""
    reference = references.get((kind.name, dtype))
    if reference is None or kind.tdp_watts is None:
        return None
    full = kind_called(reference)
    full_peak = next((peak.flops_per_second.value for peak in full.peaks if peak.dtype == dtype), None)
    if full_peak is None or full.tdp_watts is None:
        return None
    return kind.tdp_watts.value * full_peak / full.tdp_watts.value


def steady(rates: Rates) -> Rates:
    """The rates of a device that has been at work for a while."""
    return replace(rates, by_dtype=tuple(replace(rate, burst=rate.sustained) for rate in rates.by_dtype))
