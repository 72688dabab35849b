"""Plans in which every device owns several stages, for the interleaved, looped and zero-bubble schedules.

Stages go round the devices (stage s on device s mod R; the last round may be cut short), or for zero-bubble also down
and up them in a V.  For every
order of the devices and number of rounds the cuts start where every device's share of the work is in proportion to its
speed, and then move, one at a time, as long as the simulated step becomes shorter (first of all: as long as memory is
short).  That is a search, not a proof.  What is proven is that no plan at all is below the fractional balance:

    min T    s.t.   L1: sum_g x[l,g] = 1 for every layer l     (x >= 0: the share of a layer that group g computes)
                    L2: M sum_l (f[l,g] + b[l,g]) x[l,g] <= n_g T for every group g of n_g like devices
                    L3: sum_l w[l] x[l,g] <= n_g cap_g          (weights, gradients and optimizer states)

which any placement of layers on these devices, in any number of stages and under any schedule, satisfies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
import pulp

from autopart.errors import UsageError
from autopart.planning.costing.costs import Layout, short_bytes
from autopart.planning.costing.groups import group_devices
from autopart.planning.costing.memory import NUM_OPTIMIZER_STATES
from autopart.planning.costing.tables import choose_boundaries
from autopart.planning.searching.optimum import Optimum
from autopart.planning.searching.options import LOOPED, Option, evaluate
from autopart.planning.solving.effort import Effort, IsOver, never
from autopart.progress import Progress
from autopart.schema.device import Cluster, Device
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = ["MOST_ROUNDS", "balance_seconds", "check_looped", "find_looped", "fits_looped", "is_looped", "moved_cuts"]

Floats = npt.NDArray[np.float64]

MOST_ROUNDS = 4
"""stages per device that are tried; more of them shorten the bubble less and less, and each costs a transfer"""
MOST_ORDERS = 24
MOST_CUTS = 200
STRIDES = (8, 4, 2, 1)
BOUND = "fractional balance of computing over all devices, for any cuts, order and number of stages"


def is_looped(job: Job) -> bool:
    """Whether the job asks for a schedule under which a device may own several stages."""
    return job.mode == "train" and job.schedule in LOOPED


def check_looped(job: Job) -> None:
    """Refuses what such plans do not know.

    Raises:
        UsageError: the job wants something else than throughput, groups of devices, recomputation or wishes.
    """
    unknown = {
        f"--objective {job.objective}": job.objective != "throughput",
        "--tensor-parallel": job.tensor_parallel > 1,
        "--data-parallel": job.data_parallel > 1,
        "--recompute": job.recompute != "never",
        "pins, bans and layers together": bool(job.pins or job.forbidden or job.together),
        "limits of time or price": job.max_step_seconds is not None or job.max_usd_per_hour is not None,
    }
    if is_looped(job) and any(unknown.values()):
        what = next(name for name, asked in unknown.items() if asked)
        raise UsageError(f"--schedule {job.schedule} is not planned with {what}; leave it away or use --schedule 1f1b")


def find_looped(
    candidates: tuple[Candidate, ...], cluster: Cluster, job: Job, effort: Effort, progress: Progress
) -> Optimum:
    """The best placements met, and the bound that no plan is below; where none fits, the one that is closest to it."""
    options, misfits = list[Option](), list[Option]()
    tried = [(candidate, placement) for candidate in candidates for placement in _placements(candidate, cluster, job)]
    for done, (candidate, placement) in enumerate(tried):
        progress("planning", done, len(tried))
        if not effort.is_over() or not options:
            found = _Search(candidate, cluster, job, placement, effort.is_over).best()
            if found is not None:
                (misfits if found.misfit else options).append(found)
    progress("planning", len(tried), len(tried))
    options = options or sorted(misfits, key=_key)[:1]
    bound = min(balance_seconds(each, cluster, job) for each in candidates)
    return Optimum(
        options=tuple(options), bound_seconds=bound, bound=BOUND, closed=False, solver="highs",
        num_programs=len(candidates), remark="", merged=False,
    )


def fits_looped(candidate: Candidate, cluster: Cluster, job: Job, effort: Effort) -> bool:
    """Whether some placement tried of a candidate fits."""
    if math.isinf(balance_seconds(candidate, cluster, job)):
        return False
    for placement in _placements(candidate, cluster, job):
        if effort.is_over():
            return False
        found = _Search(candidate, cluster, job, placement, effort.is_over, until_it_fits=True).best()
        if found is not None and not found.misfit:
            return True
    return False


def moved_cuts(
    candidate: Candidate, cluster: Cluster, job: Job, placement: tuple[str, ...], boundaries: tuple[int, ...] = ()
) -> Option | None:
    """The best cuts met on devices in this order, from cuts that are known if there are any; None if there are too few.

    Whether the option fits it says itself.
    """
    return _Search(candidate, cluster, job, placement, never, boundaries=boundaries).best()


def _placements(candidate: Candidate, cluster: Cluster, job: Job) -> Iterator[tuple[str, ...]]:
    """The devices of the stages, in order."""
    kinds = {kind.kind: sum(kind.forward_seconds) + sum(kind.backward_seconds) for kind in candidate.profile.kinds}
    fastest = sorted(cluster.devices, key=lambda device: kinds[device.kind] / device.speed)
    most = len(set(candidate.graph.legal_cuts)) + 1
    for num_devices in range(len(fastest), 1, -1):
        for order in _orders(cluster, fastest[:num_devices]):
            names = tuple(device.name for device in order)
            lengths = {num_devices * rounds for rounds in range(1, MOST_ROUNDS + 1)} | {most, job.stages or most}
            placements = [(names * MOST_ROUNDS)[:length] for length in sorted(lengths) if length >= num_devices]
            placements += [(*names, *reversed(names))] if job.schedule == "zero-bubble" else []
            for placement in placements:
                if len(placement) <= min(most, num_devices * MOST_ROUNDS) and job.stages in (None, len(placement)):
                    yield placement


def _orders(cluster: Cluster, devices: list[Device]) -> list[tuple[Device, ...]]:
    """Different orders of devices, where like ones are not told apart; of many devices a few."""
    number = {each.name: index for index, group in enumerate(group_devices(cluster)) for each in group.devices}
    if math.factorial(len(devices)) > MOST_ORDERS:
        by_group = sorted(devices, key=lambda each: number[each.name])
        candidates = [tuple(devices), tuple(reversed(devices)), tuple(by_group)]
    else:
        candidates = list(permutations(devices))
    unlike = {tuple(number[each.name] for each in order): order for order in reversed(candidates)}
    linked = [order for order in unlike.values() if _is_ring(cluster, order)]
    return list(reversed(linked))


def _is_ring(cluster: Cluster, order: tuple[Device, ...]) -> bool:
    """Whether links join every device to the next, and the last to the first."""
    try:
        for one, other in zip(order, (*order[1:], order[0]), strict=True):
            cluster.link(one, other)
    except KeyError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Search:
    """Moves the cuts of one placement."""

    candidate: Candidate
    cluster: Cluster
    job: Job
    placement: tuple[str, ...]
    out_of_time: IsOver
    until_it_fits: bool = False
    """not until it is fast"""
    boundaries: tuple[int, ...] = ()
    """to start from; (): where all stages take about the same time"""

    def best(self) -> Option | None:
        """The best cuts met, or None if there are too few."""
        allowed = choose_boundaries(self.candidate.graph, self._layer_seconds().mean(axis=0), MOST_CUTS)
        if len(allowed) < len(self.placement) + 1:
            return None
        cuts = self._nearest(allowed) if self.boundaries else self._start(allowed)
        option = self._option(allowed, cuts)
        for stride in STRIDES:
            improved = True
            while improved and not self.out_of_time() and not (self.until_it_fits and not option.misfit):
                improved = False
                for place in range(1, len(self.placement)):
                    for step in (-stride, stride):
                        moved = [*cuts[:place], cuts[place] + step, *cuts[place + 1 :]]
                        if cuts[place - 1] < moved[place] < cuts[place + 1]:
                            other = self._option(allowed, moved)
                            if _key(other) < _key(option):
                                option, cuts, improved = other, moved, True
        return option

    def _layer_seconds(self) -> Floats:
        """[stage, layer]: forward and backward on the stage's device."""
        rows = []
        for name in self.placement:
            device = self.cluster.device(name)
            kind = self.candidate.profile.kind(device.kind)
            rows.append((np.asarray(kind.forward_seconds) + np.asarray(kind.backward_seconds)) / device.speed)
        return np.asarray(rows)

    def _start(self, allowed: tuple[int, ...]) -> list[int]:
        """Positions in ``allowed``: every stage takes about the same time."""
        seconds = self._layer_seconds()
        rates = 1 / np.maximum(seconds.sum(axis=1), 1e-12)
        goals = np.cumsum(rates) / rates.sum()
        elapsed = np.concatenate(([0.0], np.cumsum(seconds.mean(axis=0))))[list(allowed)]
        elapsed = elapsed / max(float(elapsed[-1]), 1e-12)
        return self._ascending(elapsed, goals[:-1])

    def _nearest(self, allowed: tuple[int, ...]) -> list[int]:
        """Positions in ``allowed`` next to the boundaries."""
        return self._ascending(np.asarray(allowed, dtype=np.float64), np.asarray(self.boundaries[1:-1]))

    def _ascending(self, places: Floats, goals: Floats) -> list[int]:
        """From the first to the last of these places the ones next to the goals, each once."""
        last, cuts = len(places) - 1, [0]
        for number, goal in enumerate(goals, start=1):
            nearest = int(np.abs(places - goal).argmin())
            cuts.append(min(max(nearest, cuts[-1] + 1), last - (len(self.placement) - number)))
        return [*cuts, last]

    def _option(self, allowed: tuple[int, ...], cuts: list[int]) -> Option:
        assert self.job.schedule is not None, "looped plans have a schedule"
        return evaluate(self.candidate, self.cluster, self.job, Layout(
            num_microbatches=self.candidate.num_microbatches, schedule=self.job.schedule,
            boundaries=tuple(allowed[cut] for cut in cuts), devices=self.placement,
        ))


def _key(option: Option) -> tuple[int, float]:
    return short_bytes(option.costs, option.layout), option.step_seconds


def balance_seconds(candidate: Candidate, cluster: Cluster, job: Job) -> float:
    """The fractional balance: no plan of the candidate has a shorter step; infinite if none fits."""
    graph, groups = candidate.graph, group_devices(cluster)
    held = _least_bytes(candidate, job)
    program = pulp.LpProblem("balance", pulp.LpMinimize)
    step = pulp.LpVariable("T", 0)
    shares = [[pulp.LpVariable(f"x_{layer}_{g}", 0) for g in range(len(groups))] for layer in range(len(graph.layers))]
    seconds = []
    for group in groups:
        kind = candidate.profile.kind(group.device.kind)
        each = np.asarray(kind.forward_seconds) + np.asarray(kind.backward_seconds)
        seconds.append(candidate.num_microbatches * each / group.device.speed)
    scale = max(float(min(row.sum() for row in seconds)), 1e-12)
    program += step
    for layer, row in enumerate(shares):
        program += pulp.LpAffineExpression([(share, 1.0) for share in row]) == 1, f"L1_{layer}"
    for g, group in enumerate(groups):
        column = [row[g] for row in shares]
        load = [(share, float(each) / scale) for share, each in zip(column, seconds[g], strict=True)]
        program += pulp.LpAffineExpression([*load, (step, -float(group.size))]) <= 0, f"L2_{g}"
        room = group.size * group.device.memory_bytes / 1e9
        weight = [(share, each / 1e9) for share, each in zip(column, held, strict=True)]
        program += pulp.LpAffineExpression(weight) <= room, f"L3_{g}"
    program.solve(pulp.HiGHS(msg=False, threads=1))
    if program.status != pulp.LpStatusOptimal:
        return 0.0 if program.status != pulp.LpStatusInfeasible else math.inf
    return float(step.value() or 0.0) * scale * (1 - 1e-7)


def _least_bytes(candidate: Candidate, job: Job) -> list[int]:
    """What each layer's weights need wherever it is: a weight of several layers is counted at the first of them."""
    copies = 2 + NUM_OPTIMIZER_STATES[job.optimizer]
    weights, seen, held = candidate.graph.weights, set[int](), []
    for layer in candidate.graph.layers:
        new = set(layer.weights) - seen
        seen |= new
        held.append(sum(
            weights[index].bytes * (copies if weights[index].trainable and not weights[index].is_buffer else 1)
            for index in new
        ))  # fmt: skip
    return held
