"""What plans cost at least whose largest stage time T lies in a window: a Lagrangian relaxation by cutting planes.

Every row of the path program becomes a price (Geoffrion 1974), and so does one that ties the sum to the largest time:

    C4[g]   devices used on g           <=  n_g          C5, C8  stages            (=, <=)  as many as allowed
    C7[g]   devices used on g           >=  least_g      C9      price of devices  <=  budget
    C10[g]  sum of r_a t_a x_a on g     <=  n_g T        every stage takes at most T
    C11[g]  sum of r_a x_a on g         <=  sum of room_a x_a on g       merged nodes only

For prices u the objective  sum w_a x_a + R T  is at least a shortest path under ``w_a + sum_k u_k A[k, a]``, less what
the right hand sides cost at the better end of the window.  That is concave in u; its maximum is the bound of the linear
relaxation with 1F1B's memory kept exactly.  A master program over the paths met so far, in a box around the best
prices (Kelley 1960; box step: Marsten, Hogan and Blankenship 1975), gives the next prices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autopart.planning.searching.formulate import next_prices
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.network import Lengths, Network, lengths_of, network_of, shortest_path, through
from autopart.planning.solving.effort import IsOver, never

__all__ = ["Relaxed", "Window", "relax"]

MOST_ROUNDS = 30
SETTLED = 2e-4
"""share of the distance to the target that the master program still hopes for, below which the search ends"""
FIRST_BOX, LARGEST_BOX = 1.0, 2.0

Floats = npt.NDArray[np.float64]
Cut = tuple[float, Floats]
"""(c, s): at prices u the bound is at most c + s u"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Largest stage times from ``low`` to below ``high``."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """A lower bound on the objective of all plans of a window, and of those that use each arc."""

    bound: float
    """inf: there is no plan"""
    through: Floats
    prices: Floats
    """the best ones: a good start for the next window; () if there is no plan"""
    paths: tuple[tuple[int, ...], ...] = ()
    """met on the way, of the arcs given: what they say of the prices holds in the next window too"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """sum over arcs of amounts[k] x  <=  fixed[k] + per_second[k] T; ``free`` rows are equations."""

    amounts: Floats
    fixed: Floats
    per_second: Floats
    free: npt.NDArray[np.bool_]
    scale: Floats
    """of the prices: a natural unit of each"""


def _rows(instance: Instance, arcs: Arcs, at_least: tuple[int, ...] | None, window: Window) -> _Rows:
    groups, sizes = np.arange(instance.num_groups), np.asarray(instance.counts, dtype=np.float64)
    on_group = (arcs.group[None, :] == groups[:, None]) * arcs.width.astype(np.float64)
    nothing, unit, repeats = np.zeros(instance.num_groups), window.low, max(instance.repeats, 1)
    loads = _first_load_prices(instance)
    rows = [(on_group[g], sizes[g], 0.0, False, unit * (0.1 + float(loads[g]))) for g in groups]
    if instance.repeats:
        rows += [
            (on_group[g] * arcs.seconds, 0.0, sizes[g], False, max(float(loads[g]), 1e-3 * repeats / sizes.sum()))
            for g in groups
        ]
    for scattered in instance.scattered:
        opened = on_group[scattered] - (arcs.group == scattered) * arcs.room
        rows.append((opened, 0.0, 0.0, False, unit / float(arcs.room.max(initial=1))))
    for group in np.flatnonzero(np.asarray(at_least or nothing)):
        rows.append((-on_group[group], -float((at_least or ())[group]), 0.0, False, unit))
    if instance.num_stages is not None:
        rows.append((np.ones(len(arcs)), float(instance.num_stages), 0.0, True, unit))
    elif instance.most_stages < instance.num_devices:
        rows.append((np.ones(len(arcs)), float(instance.most_stages), 0.0, False, unit))
    if instance.prices:
        paid = np.asarray(instance.prices)[arcs.group] * arcs.width
        rows.append((paid, instance.budget, 0.0, False, unit * repeats / max(instance.budget, 1e-300)))
    return _Rows(
        amounts=np.asarray([row[0] for row in rows]), fixed=np.asarray([row[1] for row in rows]),
        per_second=np.asarray([row[2] for row in rows]), free=np.asarray([row[3] for row in rows]),
        scale=np.asarray([row[4] for row in rows]),
    )


def _first_load_prices(instance: Instance) -> Floats:
    """Prices of C10 that are best for work without grain: (1 / widest + u_g) * time on g is the same for all in use."""
    sizes, speeds = np.asarray(instance.counts), 1 / np.asarray(instance.alone_seconds)
    low, high = 0.0, (instance.repeats + 1) / float((sizes * speeds).max()) * 2
    for _ in range(60):
        middle = (low + high) / 2
        prices = np.maximum(middle * speeds - 1 / instance.widest, 0.0)
        low, high = (low, middle) if float((sizes * prices).sum()) > instance.repeats else (middle, high)
    return np.maximum(low * speeds - 1 / instance.widest, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """The relaxation at some prices."""

    bound: float
    paid: float
    lengths: Lengths
    path: tuple[int, ...]


def _value(
    instance: Instance, arcs: Arcs, network: Network, rows: _Rows, window: Window, prices: Floats
) -> _Value | None:
    """None: no path at all."""
    weights = arcs.weight + prices @ rows.amounts
    found = lengths_of(network, weights)
    length = found.least(network)
    if not math.isfinite(length):
        return None
    rest = instance.repeats - float(prices @ rows.per_second)
    seconds = window.low if rest >= 0 else window.high
    paid = float(prices @ rows.fixed) - rest * seconds
    return _Value(bound=length - paid, paid=paid, lengths=found, path=tuple(shortest_path(network, found)))


def _cuts(instance: Instance, arcs: Arcs, rows: _Rows, window: Window, path: tuple[int, ...]) -> list[Cut]:
    used, total = rows.amounts[:, list(path)].sum(axis=1), arcs.sum_along(path)
    return [
        (total + instance.repeats * end, used - rows.fixed - rows.per_second * end) for end in (window.low, window.high)
    ]


def relax(
    instance: Instance, arcs: Arcs, window: Window, target: float, *,
    at_least: tuple[int, ...] | None = None, start: Floats | None = None, paths: Sequence[tuple[int, ...]] = (),
    out_of_time: IsOver = never,
) -> Relaxed:
    """The bound of a window over some arcs, all below its high end; the search ends where it reaches ``target``.

    ``start``, ``paths``: prices and paths of an earlier call, which save rounds.
    """
    nothing = Relaxed(bound=math.inf, through=np.full(len(arcs), np.inf), prices=np.zeros(0))
    if not len(arcs):
        return nothing
    network, rows = network_of(instance, arcs), _rows(instance, arcs, at_least, window)
    fresh = np.where(rows.per_second > 0, rows.scale, 0.0)
    prices = start if start is not None and len(start) == len(fresh) else fresh
    best: _Value | None = None
    met = list(dict.fromkeys(paths))
    cuts = [cut for path in met for cut in _cuts(instance, arcs, rows, window, path)]
    center, box = prices, FIRST_BOX
    for _ in range(MOST_ROUNDS):
        value = _value(instance, arcs, network, rows, window, prices)
        if value is None:
            return nothing
        is_new = value.path not in met
        if is_new:
            met.append(value.path)
            cuts += _cuts(instance, arcs, rows, window, value.path)
        if best is None or value.bound > best.bound:
            best, center, box = value, prices, min(box * 1.5, LARGEST_BOX)
        elif not is_new:  # late optimizers: the length is less than that of any path, and the master learns nothing
            break
        if out_of_time():
            break
        prices, hope = next_prices(cuts, center / rows.scale, rows.scale, rows.free, box)
        wanted = (target if math.isfinite(target) else 2 * abs(best.bound)) - best.bound
        if wanted <= 0 or hope - best.bound < SETTLED * wanted:
            break
    assert best is not None, "there is a round"
    lengths = through(network, best.lengths) - best.paid
    return Relaxed(
        bound=best.bound * (1 - 1e-9), through=lengths * (1 - 1e-9), prices=center, paths=tuple(met),
    )
