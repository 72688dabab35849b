"""GPipe's two phases: what the path problem with one largest time leaves open is closed by branch and bound.

In training a step under GPipe takes the longest forward F of any stage and the longest backward B of any stage once
more for every further micro-batch (``periods``).  A path problem knows one largest time.  For plans whose longest
forward lies in [low, high) it is that over

    max(F_a, low) + B_a    of the arcs with F_a < high

which is never more than the sum of the two, and exactly that for a plan whose longest forward is ``low``.  So the range
of least bound is parted at the longest forward of its best path, until no range has a bound below the target.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from autopart.planning.searching.bounds import Certificate
from autopart.planning.searching.chain import Path
from autopart.planning.searching.instance import Instance
from autopart.planning.solving.effort import Effort

__all__ = ["between", "narrow"]

ALIKE = 1e-6
"""relative difference of times that are one"""

Solve = Callable[[Instance], tuple[Certificate, float]]
"""of an instance its certificate, and the objective of the best plan known then"""


def between(instance: Instance, low: float, high: float) -> Instance:
    """The path problem of the plans whose longest forward is at least ``low`` and below ``high``."""
    arcs = instance.arcs.keep(instance.arcs.ahead < high)
    return replace(instance, arcs=replace(arcs, seconds=np.maximum(arcs.ahead, low) + arcs.seconds - arcs.ahead))


@dataclass(frozen=True, slots=True, order=True)
class _Range:
    """Plans whose longest forward lies between."""

    bound: float
    low: float
    high: float
    path_ahead: float
    """of the best path met there; nan if none was"""


def narrow(instance: Instance, first: Certificate, best: float, effort: Effort, solve: Solve) -> Certificate:
    """A certificate for GPipe, from one for its path problem as a whole.

    Args:
        instance: as ``build_instance`` makes it.
        first: its certificate.
        best: the objective of the best plan known.
        effort: how long, and how good is enough.
        solve: of one range.
    """
    longest = float(instance.arcs.ahead.max(initial=0.0)) * (1 + 1e-9)
    ranges = [_Range(first.bound_seconds, 0.0, longest, _ahead(instance, first.path))]
    made, stuck = [first], math.inf
    while ranges and ranges[0].bound < best / (1 + effort.gap) * (1 - 1e-9) and not effort.is_over():
        worst = heapq.heappop(ranges)
        parts = _parts(instance, worst)
        if not parts:
            stuck = min(stuck, worst.bound)
        for low, high in parts:
            part = between(instance, low, high)
            certificate, best = solve(part)
            made.append(certificate)
            bound = max(worst.bound, min(certificate.bound_seconds, best))
            heapq.heappush(ranges, _Range(bound, low, high, _ahead(part, certificate.path)))
    bound = min([stuck, *(each.bound for each in ranges)])
    return Certificate(
        bound_seconds=bound, path=(), closed=all(each.closed for each in made) and not effort.is_over(),
        num_programs=sum(each.num_programs for each in made),
        solver="+".join(sorted({word for each in made for word in each.solver.split("+")} - {"none"})) or "none",
        remark=next((each.remark for each in made if each.remark), ""),
    )


def _ahead(instance: Instance, path: Path) -> float:
    return float(instance.arcs.ahead[list(path)].max()) if path else math.nan


def _parts(instance: Instance, worst: _Range) -> list[tuple[float, float]]:
    """A range in two at the longest forward of its best path, or in the middle if none was met.

    None where that would change nothing: all forwards are alike, or the path's is no longer than the least allowed.
    """
    at = worst.path_ahead
    if math.isnan(at):
        ahead = instance.arcs.ahead
        inside = np.unique(ahead[(ahead > worst.low * (1 + ALIKE)) & (ahead < worst.high)])
        at = float(inside[len(inside) // 2]) if len(inside) else worst.low
    return [(worst.low, at), (at, worst.high)] if worst.low * (1 + ALIKE) < at else []
