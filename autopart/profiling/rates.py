"""What a kind of device sustains, from its data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopart.profiling.catalogue import kind as kind_called
from autopart.schema.device import Kind

__all__ = ["Rates", "rates_of"]

LAUNCH_SECONDS = 6e-6
"""of one operator inside a model; between events a lone one shows 26-38 us on NVIDIA cards"""

CPU_LAUNCH_SECONDS = 5e-6
"""assumed: what torch takes to dispatch an operator"""

FALLBACKS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "float16": (("float32", 1.0),),
    "bfloat16": (("float32", 1.0),),
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

POWER_REFERENCES: Mapping[tuple[str, bool], str] = {
    ("Turing", False): "rtx-2080ti",
    ("Turing", True): "titan-rtx",
    ("Pascal", False): "gtx-1080ti",
    ("Ada", False): "rtx-6000-ada",
    ("Ada", True): "rtx-6000-ada",
}
"""(architecture, whether the type runs on matrix units) → a full-power card: its FLOP/s per watt cap the others.
Explains .40-.42 of peak on the T4; where an architecture is left out, no card of low power is known."""

SUSTAINED: Mapping[tuple[str, str], float] = {
    ("Pascal", "float32"): 0.75,  # P100 .66 of peak where V100 has .88
    ("CDNA1", "float32"): 1.39,  # MI100 .64 of its float32 *matrix* peak, twice the data sheet's vector peak
    ("CDNA2", "float32"): 1.39,  # the same units
}
"""(architecture, type) → sustained / data-sheet rate, relative to what the laws expect; 1 where left out"""

BANDWIDTH: Mapping[str, float] = {"Pascal": 0.82, "Turing": 0.89}
"""architecture → reached bandwidth relative to the laws (large elementwise operators, ops_neusight_fp32.csv)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the laws need of a device."""

    launch_seconds: float
    bandwidth_bytes_per_second: float
    by_dtype: tuple[tuple[str, float, str], ...]
    """(type, FLOP/s, what to say about it: empty if the data sheet has the type)"""

    def flops_per_second(self, dtype: str) -> float:
        """The sustained rate of a torch data type, before a family's efficiency."""
        return self._row(dtype)[1]

    def note(self, dtype: str) -> str:
        """What was assumed about the type; empty if nothing was."""
        return self._row(dtype)[2]

    def _row(self, dtype: str) -> tuple[str, float, str]:
        wanted = _sheet_dtype(dtype)
        return next(row for row in self.by_dtype if row[0] == wanted)


def rates_of(kind: Kind) -> Rates:
    """The rates of a kind for every data type, those that its data sheet lacks by ``FALLBACKS``."""
    is_cpu = kind.vendor == "CPU"
    return Rates(
        launch_seconds=CPU_LAUNCH_SECONDS if is_cpu else LAUNCH_SECONDS,
        bandwidth_bytes_per_second=kind.bandwidth_bytes_per_second.value * BANDWIDTH.get(kind.architecture, 1.0),
        by_dtype=tuple(_rate(kind, dtype) for dtype in FALLBACKS),
    )


def _sheet_dtype(dtype: str) -> str:
    """The data sheet's name of a torch type; complex and integer types count as float32."""
    if dtype.startswith("float8"):
        return "float8"
    return dtype if dtype in FALLBACKS else "float32"


def _rate(kind: Kind, dtype: str) -> tuple[str, float, str]:
    peaks = {peak.dtype: peak.flops_per_second.value for peak in kind.peaks}
    fallbacks = (CPU_FALLBACKS if kind.vendor == "CPU" else FALLBACKS)[dtype]
    if dtype in peaks and not (dtype in WIDENED and peaks[dtype] < peaks.get("float32", 0.0)):
        return dtype, _sustained(kind, dtype, peaks[dtype]), ""
    for other, factor in fallbacks:
        if other in peaks:
            share = "" if factor == 1 else f"{factor:.3g} x "
            return dtype, factor * _sustained(kind, other, peaks[other]), f"{dtype} at {share}the {other} rate"
    other, peak = next(iter(peaks.items()))
    return dtype, _sustained(kind, other, peak), f"{dtype} at the {other} rate, the only one known"


def _sustained(kind: Kind, dtype: str, peak: float) -> float:
    """The peak, or less where power or the architecture does not let it last."""
    rate = peak * SUSTAINED.get((kind.architecture, dtype), 1.0)
    reference = POWER_REFERENCES.get((kind.architecture, dtype != "float32"))
    if reference is None or kind.tdp_watts is None:
        return rate
    full = kind_called(reference)
    full_peak = next((peak.flops_per_second.value for peak in full.peaks if peak.dtype == dtype), None)
    if full_peak is None or full.tdp_watts is None:
        return rate
    return min(rate, kind.tdp_watts.value * full_peak / full.tdp_watts.value)
