"""Which sets of rented devices are worth a plan: ``budget 2 $/h``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from autopart.errors import UsageError
from autopart.schema.device import Kind

__all__ = ["MOST_DEVICES", "Budgeted", "read_budget", "sets_within", "worth_planning"]

MOST_DEVICES = 8
"""in a set; people rent machines of up to eight"""
_BUDGET = re.compile(r"\s*budget\s+([0-9]+(?:\.[0-9]+)?)\s*(?:\$|usd)\s*/\s*h\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgeted:
    """Counts of kinds, and their rent together."""

    counts: tuple[tuple[str, int], ...]
    rent_usd_per_hour: float

    @property
    def name(self) -> str:
        """As a device list: ``2xl4,1xt4``."""
        return ",".join(f"{number}x{kind}" for kind, number in self.counts)


def read_budget(text: str) -> float:
    """US dollars per hour in ``budget 2 $/h``.

    >>> read_budget("budget 1.50 $/h")
    1.5

    Raises:
        UsageError: it says something else, or nothing can be had for it.
    """
    match = _BUDGET.fullmatch(text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--catalogue {text!r} is no budget; write for example --catalogue 'budget 2 $/h'")
    return float(match[1])


def sets_within(budget_usd_per_hour: float, kinds: Sequence[Kind]) -> tuple[Budgeted, ...]:
    """All sets of up to eight devices of one or two kinds whose rent is within the budget, cheapest first.

    Raises:
        UsageError: not even one device is.
    """
    rents = {kind.name: kind.rent_usd_per_hour.value for kind in kinds if kind.rent_usd_per_hour is not None}
    names = sorted(rents, key=lambda name: (rents[name], name))
    found: list[tuple[tuple[str, int], ...]]
    found = [((name, number),) for name in names for number in range(1, MOST_DEVICES + 1)]
    found += [
        ((one, number), (other, more))
        for one, other in combinations(names, 2)
        for number in range(1, MOST_DEVICES) for more in range(1, MOST_DEVICES - number + 1)
    ]  # fmt: skip
    priced = (Budgeted(counts=each, rent_usd_per_hour=sum(rents[name] * n for name, n in each)) for each in found)
    within = [each for each in priced if each.rent_usd_per_hour <= budget_usd_per_hour * (1 + 1e-9)]
    if not within:
        cheapest = f"{names[0]} at {rents[names[0]]:g} $/h" if names else "none, no kind has a rent"
        raise UsageError(f"nothing can be rented for {budget_usd_per_hour:g} $/h; the cheapest is {cheapest}")
    return tuple(sorted(within, key=lambda each: (each.rent_usd_per_hour, each.name)))


def worth_planning(
    sets: Sequence[Budgeted], speed: Callable[[str], float], memory_bytes: Callable[[str], float],
    needed_bytes: float, most: int,
) -> tuple[Budgeted, ...]:
    """At most ``most`` of the sets: those whose devices' speeds add up to most, and to most per dollar, in turn.

    Args:
        sets: to choose from.
        speed: samples per second of a kind, alone and unhindered; their sum bounds what a pipeline can reach.
        memory_bytes: of a device of a kind.
        needed_bytes: sets with less in all are left out: the weights alone would not fit.
        most: number of sets.
    """
    def bound(each: Budgeted) -> float:
        return sum(number * speed(kind) for kind, number in each.counts)

    holding = [each for each in sets if sum(n * memory_bytes(kind) for kind, n in each.counts) >= needed_bytes]
    by_speed = sorted(holding, key=lambda each: (-bound(each), each.name))
    by_price = sorted(  # of sets worth the same, up to rounding, the cheapest
        holding, key=lambda each: (-round(bound(each) / each.rent_usd_per_hour, 9), each.rent_usd_per_hour, each.name)
    )
    chosen: dict[str, Budgeted] = {}
    for pair in zip(by_speed, by_price, strict=True):
        for each in pair:
            if len(chosen) < most:
                chosen.setdefault(each.name, each)
    return tuple(chosen.values())
