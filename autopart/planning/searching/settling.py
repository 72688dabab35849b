"""One window of the largest stage time, settled: what its plans cost at least, or that none beats the target.

Three ways, the cheaper first: the dynamic program over vectors of used devices (``frontier``), the one that keeps all
labels (``labels``), an integer program (``formulate``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.chain import Path, path_objective
from autopart.planning.searching.formulate import solve_path
from autopart.planning.searching.frontier import can_list, least_sum
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.labels import exact_sum
from autopart.planning.searching.relaxation import Relaxed, Window
from autopart.planning.searching.updates import with_late_updates
from autopart.planning.solving.effort import Effort

__all__ = ["Indices", "Search", "keeping_rows", "settle", "some_arcs"]

MOST_STEPS = 150_000_000
"""sums of the exact dynamic program, above which it takes too long"""
MOST_LABELS, MOST_VECTORS = 5_000_000, 5000
"""tried by the one that keeps them all, and of used devices: with more it hardly ends"""
MOST_ARCS = 6000
"""of an integer program"""
SHARE_OF_GAP = 0.25
"""that a program may leave open"""
PATIENCE_SECONDS = 10.0
"""for a program; what takes longer is parted"""

Indices = npt.NDArray[np.int64]


@dataclass(slots=True)
class Search:
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


def settle(
    search: Search, window: Window, relaxed: Relaxed, indices: Indices
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
    search: Search, window: Window, useful: Indices, least_of: Callable[[Search, Arcs], tuple[float, Path]]
) -> bool:
    """Whether no plan of a window over some arcs beats the target: least sums S(b), with b from its high end down.

    Plans whose largest stage time is (target - S(b)) / R or more cost no less than the target (see ``bounds``).  Paths
    over arcs that were left out cost at least the target of before.
    """
    instance, high = search.instance, window.high
    while high > window.low and not search.effort.is_over():
        below = useful[instance.arcs.seconds[useful] < high]
        total, path = least_of(search, some_arcs(instance, below))
        search.meet(keeping_rows(instance, tuple(below[list(path)].tolist())))
        if math.isnan(total):
            return False
        if math.isinf(total):  # no path at all, whatever the target
            return True
        lower = (search.target - total) / instance.repeats
        if lower >= high * (1 - 1e-9):
            return False
        if path and float(instance.arcs.seconds[below[list(path)]].max()) < lower:
            return False  # the path is there below the next one as well, and its sum no larger
        high = lower
    return high <= window.low


def _least_by_vectors(search: Search, arcs: Arcs) -> tuple[float, Path]:
    """A lower bound on the sum of weights, nan if it would take too long, and a path; by the dynamic program."""
    least = least_sum(search.instance, arcs, MOST_STEPS, out_of_time=search.effort.is_over)
    search.solvers.add("exact dynamic program")
    return least.total, least.path


def _least_by_labels(search: Search, arcs: Arcs) -> tuple[float, Path]:
    """The same, exactly but for row C11."""
    instance = search.instance
    if math.prod(count + 1 for count in instance.counts) > MOST_VECTORS:
        return math.nan, ()
    below = search.target - instance.repeats * search.low
    least = exact_sum(instance, arcs, below, MOST_LABELS, out_of_time=search.effort.is_over)
    return least.total, least.path


def _least_by_program(search: Search, arcs: Arcs) -> tuple[float, Path]:
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


def some_arcs(instance: Instance, useful: Indices) -> Arcs:
    """The arcs at some places."""
    mask = np.zeros(len(instance.arcs), dtype=np.bool_)
    mask[useful] = True
    return with_late_updates(instance.arcs.keep(mask))
