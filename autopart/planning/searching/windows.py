"""How good the best plan of a large problem is: windows of the largest stage time T, from the least one up.

A plan costs at least (R + 1) T, so only T below ``target / (R + 1)`` matter.  Each window of T is closed by the
relaxation alone (``relaxation``), or over the arcs that a plan below the target may have: by the exact dynamic program
(``frontier``) where the vectors of used devices can be listed, or by an integer program.  Windows that are not settled
are parted; plans met on the way become the incumbent.  When all are closed, nothing costs less than the target.
"""

from __future__ import annotations

import heapq
import math
from itertools import pairwise

import numpy as np

from autopart.planning.searching.bottleneck import least_threshold
from autopart.planning.searching.bounds import Certificate
from autopart.planning.searching.frontier import can_list
from autopart.planning.searching.instance import Instance
from autopart.planning.searching.relaxation import Relaxed, Window, relax
from autopart.planning.searching.settling import Indices, Search, keeping_rows, settle, some_arcs
from autopart.planning.solving.effort import Effort

__all__ = ["prove_by_windows"]

FIRST_WIDTH = 4.0
"""of a window, in gaps"""
NARROWEST = 1 / 64
"""of a gap: a window that is not settled then is left open"""
FINE = 5e-3
"""where only programs could settle windows, they are asked about those that are so narrow, or as the gap"""
NUM_PARTS = 4
"""of a wider one"""
MOST_PATHS = 150
"""that the next relaxation is told of"""
MOST_FAILURES = 3
"""programs without an answer, after which windows stay open"""


def prove_by_windows(instance: Instance, incumbent: float, effort: Effort) -> Certificate:
    """A lower bound on the objective of all plans of an instance with R > 0, and a better path if one is met.

    ``incumbent`` is the objective of the best plan known (inf: none).
    """
    assert instance.repeats > 0, "latency has no largest stage time in its objective"
    tight = max(effort.gap / 8, 1e-5)
    least = least_threshold(instance, incumbent / (instance.repeats + 1), tight, out_of_time=effort.is_over)
    search = Search(instance, effort, incumbent, least.floor_seconds, FIRST_WIDTH * max(effort.gap, 1e-3))
    search.meet(keeping_rows(instance, least.path))
    if search.low <= 0:  # windows grow from the floor; without one nothing but 0 is proven
        return Certificate(
            bound_seconds=0.0, path=search.path, closed=search.best <= 0, num_programs=0, solver="none", remark="",
        )
    if not can_list(instance):
        _lowest_first(search)
    while search.low < search.highest:
        _step(search)
    bound = min(search.bound, search.target)
    if search.is_open:
        search.solvers.add("open")
    return Certificate(
        bound_seconds=bound, path=search.path or search.loose, closed=not search.is_open,
        num_programs=search.num_programs,
        solver="+".join(sorted(search.solvers - {"open"})) or "none", remark=search.remark,
    )


def _relaxed(search: Search, window: Window) -> tuple[Relaxed, Indices]:
    """The relaxation of a window, and the arcs that it is over."""
    below = search.instance.arcs.seconds < window.high
    indices = np.flatnonzero(below if search.alive is None else below & search.alive)
    arcs = some_arcs(search.instance, indices)
    relaxed = relax(
        search.instance, arcs, window, search.target, start=search.prices, out_of_time=search.effort.is_over,
        paths=_among(search.paths, indices),
    )
    search.prices = relaxed.prices if len(relaxed.prices) else search.prices
    met = [*search.paths, *(indices[list(path)] for path in relaxed.paths)]
    search.paths = list({path.tobytes(): path for path in met}.values())[-MOST_PATHS:]
    return relaxed, indices


def _among(paths: list[Indices], indices: Indices) -> list[tuple[int, ...]]:
    """The paths that have only arcs of ``indices``, by places there."""
    places = [(np.searchsorted(indices, path), path) for path in paths] if len(indices) else []
    return [
        tuple(at.tolist()) for at, path in places if at.max() < len(indices) and (indices[at] == path).all()
    ]


def _step(search: Search) -> None:
    """Close all windows at once, or the next one, or part it."""
    rest = Window(low=search.low, high=search.highest)
    window = Window(low=search.low, high=min(search.low * (1 + search.width), search.highest))
    if search.effort.is_over():
        _leave_open(search, rest)
        return
    if window.high < rest.high:
        if search.rest[0] < search.low:
            _try_rest(search, rest)
        if search.rest[1] >= search.target:
            search.pass_by(rest, search.rest[1])
            return
    else:
        window = rest
    relaxed, indices = _relaxed(search, window)
    if relaxed.bound >= search.target:
        search.pass_by(window, relaxed.bound)
        return
    if search.effort.is_over():
        _leave_open(search, rest)
        return
    settled, bound = settle(search, window, relaxed, indices)
    if settled:
        search.pass_by(window, bound)
    elif search.width > NARROWEST * search.effort.gap:
        search.width /= 4
    else:
        search.pass_by(window, relaxed.bound, settled=False)


def _try_rest(search: Search, rest: Window) -> None:
    """All windows that are left at once; arcs whose best path costs more than the target are in none of them."""
    relaxed, indices = _relaxed(search, rest)
    search.rest = (search.low, relaxed.bound)
    search.alive = np.zeros(len(search.instance.arcs), dtype=np.bool_)
    search.alive[indices[relaxed.through < search.target]] = True


def _lowest_first(search: Search) -> None:
    """All windows at once, where only programs settle them: the one with the lowest bound is parted, or asked about.

    The relaxation is the sharper the narrower the window, and takes far less than a program.
    """
    relaxed, _ = _relaxed(search, Window(low=search.low, high=search.highest))
    waiting, stuck, failures = [(relaxed.bound, search.low, search.highest)], [], 0
    while waiting and waiting[0][0] < search.target and not search.effort.is_over() and failures < MOST_FAILURES:
        bound, low, high = heapq.heappop(waiting)
        high = min(high, search.highest)
        if low >= high:
            continue
        if high > low * (1 + max(FINE, search.effort.gap)):
            ends = [low * (high / low) ** (number / NUM_PARTS) for number in range(NUM_PARTS)]
            for part in (Window(low=one, high=other) for one, other in pairwise([*ends, high])):
                relaxed, _ = _relaxed(search, part)
                heapq.heappush(waiting, (max(bound, relaxed.bound), part.low, part.high))
            continue
        window = Window(low=low, high=high)
        if not settle(search, window, *_relaxed(search, window))[0]:
            stuck.append(bound)
            failures += 1
    least = min([*stuck, *(bound for bound, low, _ in waiting if low < search.highest)], default=math.inf)
    least = max(least, (search.instance.repeats + 1) * search.low * (1 - 1e-9))
    search.pass_by(Window(low=search.low, high=math.inf), least, settled=least >= search.target)


def _leave_open(search: Search, rest: Window) -> None:
    """Ends with what the relaxation says of all that is left, and no less than its shortest stage time does."""
    relaxed, _ = _relaxed(search, rest)
    bound = max(relaxed.bound, (search.instance.repeats + 1) * rest.low * (1 - 1e-9))
    search.pass_by(rest, bound, settled=bound >= search.target)
