"""How good the best plan of a large problem is: windows of the largest stage time T, from the least one up.

A plan costs at least (R + 1) T, so only T below ``target / (R + 1)`` matter.  Each window of T is closed by the
relaxation alone (``relaxation``), or over the arcs that a plan below the target may have: by the exact dynamic program
(``frontier``) where the vectors of used devices can be listed, or by an integer program.  Windows that are not settled
are parted; plans met on the way become the incumbent.  When all are closed, nothing costs less than the target.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.bottleneck import least_threshold
from autopart.planning.searching.bounds import Certificate
from autopart.planning.searching.chain import Path, path_objective
from autopart.planning.searching.formulate import solve_path
from autopart.planning.searching.frontier import can_list, least_sum
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.labels import exact_sum
from autopart.planning.searching.relaxation import Relaxed, Window, relax
from autopart.planning.searching.updates import with_late_updates
from autopart.planning.solving.effort import Effort

__all__ = ["keeping_rows", "prove_by_windows"]

MOST_STEPS = 150_000_000
"""sums of the exact dynamic program, above which it takes too long"""
MOST_LABELS = 20_000_000
"""tried by the one that keeps them all"""
MOST_ARCS = 6000
"""of an integer program"""
FIRST_WIDTH = 4.0
"""of a window, in gaps"""
NARROWEST = 1 / 64
"""of a gap: a window that is not settled then is left open"""
SHARE_OF_GAP = 0.25
"""that a program may leave open"""
PATIENCE_SECONDS = 10.0
"""for a program; what takes longer is parted"""
FINE = 5e-3
"""where only programs could settle windows, they are asked about those that are so narrow, or as the gap"""
NUM_PARTS = 4
"""of a wider one"""
MOST_PATHS = 150
"""that the next relaxation is told of"""
MOST_FAILURES = 3
"""programs without an answer, after which windows stay open"""

Indices = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Search:
    """Where the search stands: the incumbent, what is proven, and the next window."""

    instance: Instance
    effort: Effort
    best: float
    low: float
    width: float
    path: Path = ()
    loose: Path = ()
    """the best met that breaks row C11: on real nodes it takes longer, but may be better than what is known"""
    bound: float = math.inf
    """of the windows closed, and of those left open"""
    is_open: bool = False
    num_programs: int = 0
    solvers: set[str] = field(default_factory=set)
    remark: str = ""
    prices: npt.NDArray[np.float64] | None = None
    paths: list[Indices] = field(default_factory=list)
    """met by relaxations"""
    alive: npt.NDArray[np.bool_] | None = None
    """arcs that a plan of the windows left may have, if it is to beat the target; None: all"""
    rest: tuple[float, float] = (-math.inf, -math.inf)
    """the least stage time from which all windows were tried at once, and the bound"""

    @property
    def target(self) -> float:
        """What a plan must beat to matter."""
        return self.best / (1 + self.effort.gap)

    @property
    def highest(self) -> float:
        """Stage times from here on are in no plan that beats the target."""
        longest = float(self.instance.arcs.seconds.max(initial=0.0)) * (1 + 1e-9)
        return min(self.target / (self.instance.repeats + 1), longest)

    def meet(self, path: Path) -> None:
        """Take a path as incumbent if it is better."""
        objective = path_objective(self.instance, self.instance.arcs, path) if path else math.inf
        if objective >= self.best:
            return
        if _opens_rooms(self.instance, path):
            self.best, self.path = objective, path
        elif not self.loose or objective < path_objective(self.instance, self.instance.arcs, self.loose):
            self.loose = path

    def pass_by(self, window: Window, bound: float, *, settled: bool = True) -> None:
        """Go on behind a window, of which a bound is known."""
        self.low, self.bound = window.high, min(self.bound, bound)
        self.is_open = self.is_open or not settled
        self.width *= 2


def prove_by_windows(instance: Instance, incumbent: float, effort: Effort) -> Certificate:
    """A lower bound on the objective of all plans of an instance with R > 0, and a better path if one is met.

    ``incumbent`` is the objective of the best plan known (inf: none).
    """
    assert instance.repeats > 0, "latency has no largest stage time in its objective"
    tight = max(effort.gap / 8, 1e-5)
    least = least_threshold(instance, incumbent / (instance.repeats + 1), tight, out_of_time=effort.is_over)
    search = _Search(instance, effort, incumbent, least.floor_seconds, FIRST_WIDTH * max(effort.gap, 1e-3))
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


def keeping_rows(instance: Instance, path: Path) -> Path:
    """The path if it keeps the rows that the threshold program does not know, else ()."""
    arcs, chosen = instance.arcs, list(path)
    held = [int(arcs.most_in_flight[arc]) >= min(instance.num_microbatches, len(path) - at)
            for at, arc in enumerate(path)]
    wanted = instance.num_stages in (None, len(path)) and len(path) <= instance.most_stages
    paid = sum(instance.prices[int(arcs.group[arc])] * int(arcs.width[arc]) for arc in chosen) if instance.prices else 0
    return path if all(held) and wanted and paid <= instance.budget * (1 + 1e-9) else ()


def _opens_rooms(instance: Instance, path: Path) -> bool:
    """Whether a path keeps row C11, which dynamic programs do not know."""
    chosen, arcs = np.asarray(path, dtype=np.int64), instance.arcs
    spare = np.bincount(arcs.group[chosen], arcs.room[chosen] - arcs.width[chosen], instance.num_groups)
    return all(spare[group] >= 0 for group in instance.scattered)


def _relaxed(search: _Search, window: Window) -> tuple[Relaxed, Indices]:
    """The relaxation of a window, and the arcs that it is over."""
    below = search.instance.arcs.seconds < window.high
    indices = np.flatnonzero(below if search.alive is None else below & search.alive)
    arcs = _some(search.instance, indices)
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


def _step(search: _Search) -> None:
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
    settled, bound = _settle(search, window, relaxed, indices)
    if settled:
        search.pass_by(window, bound)
    elif search.width > NARROWEST * search.effort.gap:
        search.width /= 4
    else:
        search.pass_by(window, relaxed.bound, settled=False)


def _try_rest(search: _Search, rest: Window) -> None:
    """All windows that are left at once; arcs whose best path costs more than the target are in none of them."""
    relaxed, indices = _relaxed(search, rest)
    search.rest = (search.low, relaxed.bound)
    search.alive = np.zeros(len(search.instance.arcs), dtype=np.bool_)
    search.alive[indices[relaxed.through < search.target]] = True


def _lowest_first(search: _Search) -> None:
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
        if not _settle(search, window, *_relaxed(search, window))[0]:
            stuck.append(bound)
            failures += 1
    least = min([*stuck, *(bound for bound, low, _ in waiting if low < search.highest)], default=math.inf)
    least = max(least, (search.instance.repeats + 1) * search.low * (1 - 1e-9))
    search.pass_by(Window(low=search.low, high=math.inf), least, settled=least >= search.target)


def _leave_open(search: _Search, rest: Window) -> None:
    """Ends with what the relaxation says of all that is left, and no less than its shortest stage time does."""
    relaxed, _ = _relaxed(search, rest)
    bound = max(relaxed.bound, (search.instance.repeats + 1) * rest.low * (1 - 1e-9))
    search.pass_by(rest, bound, settled=bound >= search.target)


def _settle(
    search: _Search, window: Window, relaxed: Relaxed, indices: Indices
) -> tuple[bool, float]:
    """Whether all plans of a window are accounted for, and their bound."""
    useful = indices[relaxed.through < search.target]
    if can_list(search.instance):
        settled = any(_descend(search, window, useful, each) for each in (_least_by_vectors, _least_by_labels))
        if settled or len(useful) > MOST_ARCS:
            return settled, search.target
    all_in = len(useful) <= MOST_ARCS
    if not all_in:
        through = relaxed.through[relaxed.through < search.target]
        useful = np.sort(useful[np.argsort(through, kind="stable")[:MOST_ARCS]])
    return _descend(search, window, useful, _least_by_program) and all_in, search.target


def _descend(
    search: _Search, window: Window, useful: Indices, least_of: Callable[[_Search, Arcs], tuple[float, Path]]
) -> bool:
    """Whether no plan of a window over some arcs beats the target: least sums S(b), with b from its high end down.

    Plans whose largest stage time is (target - S(b)) / R or more cost no less than the target (see ``bounds``).  Paths
    over arcs that were left out cost at least the target of before.
    """
    instance, high = search.instance, window.high
    while high > window.low and not search.effort.is_over():
        below = useful[instance.arcs.seconds[useful] < high]
        total, path = least_of(search, _some(instance, below))
        search.meet(keeping_rows(instance, tuple(below[list(path)].tolist())))
        if math.isnan(total):
            return False
        if math.isinf(total):  # no path at all, whatever the target
            return True
        lower = (search.target - total) / instance.repeats
        if lower >= high * (1 - 1e-9):
            return False
        high = lower
    return high <= window.low


def _least_by_vectors(search: _Search, arcs: Arcs) -> tuple[float, Path]:
    """A lower bound on the sum of weights, nan if it would take too long, and a path; by the dynamic program."""
    least = least_sum(search.instance, arcs, MOST_STEPS, out_of_time=search.effort.is_over)
    search.solvers.add("exact dynamic program")
    return least.total, least.path


def _least_by_labels(search: _Search, arcs: Arcs) -> tuple[float, Path]:
    """The same, exactly but for row C11."""
    instance = search.instance
    below = search.target - instance.repeats * search.low
    least = exact_sum(instance, arcs, below, MOST_LABELS, out_of_time=search.effort.is_over)
    return least.total, least.path


def _least_by_program(search: _Search, arcs: Arcs) -> tuple[float, Path]:
    """The same by the integer program."""
    effort = search.effort
    solution = solve_path(
        search.instance, arcs, at_least=None, solver=effort.solver, clock=effort.clock,
        time_limit_seconds=max(min(effort.left_seconds(), PATIENCE_SECONDS), 1.0), gap=SHARE_OF_GAP * effort.gap,
    )
    search.num_programs += 1
    if solution.solver != "none":
        search.solvers.add(solution.solver)
    search.remark = search.remark or solution.remark
    return math.nan if solution.outcome == "unknown" else solution.objective_bound, solution.path


def _some(instance: Instance, useful: Indices) -> Arcs:
    mask = np.zeros(len(instance.arcs), dtype=np.bool_)
    mask[useful] = True
    return with_late_updates(instance.arcs.keep(mask))
