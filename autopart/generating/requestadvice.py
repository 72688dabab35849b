"""What other requests would give: more at once, weights in fewer bits, and from how many on splitting pays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from autopart.advising import WORTH, Case, Finder, Problem
from autopart.generating.maker import Maker
from autopart.schema.advice import Advice, Variant
from autopart.schema.generation import Requests, WeightFormat
from autopart.units import format_seconds

__all__ = ["request_finders"]

MOST_REQUESTS = 1024
"""at once, that are looked at"""

NARROWER: tuple[WeightFormat, ...] = ("int8", "int4")


def request_finders(maker: Maker) -> tuple[Finder, ...]:
    """Advice about the requests of a plan, solved anew with other ones."""
    others = _Others(maker)
    return tuple(functools.partial(find, others) for find in (_more_at_once, _narrower_weights, _from_requests))


class _Others:
    """The plan's problem with other requests, in any number of groups; each is made once."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self.requests = maker.requests
        self._known: dict[Requests, Problem] = {}

    def at(self, problem: Problem, **words: object) -> Problem:
        """The problem with some of the requests' words changed."""
        requests = dataclasses.replace(self.requests, **words)  # type: ignore[arg-type]
        if requests not in self._known:
            first, *others = self._maker.of(requests).cases()
            self._known[requests] = _with_cases(problem, first, tuple(others))
        return self._known[requests]

    def fits(self, problem: Problem, concurrency: int) -> bool:
        """Whether there is room for so many requests, in one group."""
        maker = self._maker.of(dataclasses.replace(self.requests, concurrency=concurrency))
        return _with_cases(problem, maker.together(), ()).solved is not None


def _with_cases(problem: Problem, first: Case, others: tuple[Case, ...]) -> Problem:
    return dataclasses.replace(problem, candidates=first.candidates, job=first.job, others=others)


def _more_at_once(others: _Others, problem: Problem) -> Iterator[Advice]:
    """Four times as many requests, or twice if those do not fit; and how many do."""
    now = others.requests.concurrency
    if problem.job.objective == "latency":
        return
    best: tuple[int, Variant] | None = None
    for factor in (4, 2):
        solved = others.at(problem, concurrency=factor * now).solved
        if solved is not None:
            best = factor * now, solved
            break
    most = _most_that_fit(others, problem, best[0] if best else now)
    room = f"{most} fit at once" if most < MOST_REQUESTS else f"{MOST_REQUESTS} and more fit at once"
    gain, kept = problem.gain(best[1] if best else None), problem.kept
    if best is not None and kept is not None and gain > WORTH:
        yield Advice(
            code="concurrency", gain=gain, basis="solved",
            message=f"raise --concurrency from {now} to {best[0]}: {gain - 1:+.0%} tokens/s, a token of each every "
            f"{format_seconds(best[1].step_seconds)} instead of {format_seconds(kept.step_seconds)}; {room}",
        )  # fmt: skip
    else:
        yield Advice(
            code="concurrency", gain=None, basis="solved",
            message=f"{room}; more requests than these {now} do not give more tokens/s" if best
            else f"{room}: their caches fill the memory",
        )  # fmt: skip


def _most_that_fit(others: _Others, problem: Problem, least: int) -> int:
    """Requests at once for whose caches there is room, to within a tenth."""
    low, high = least, 2 * least
    while high <= MOST_REQUESTS and others.fits(problem, high):
        low, high = high, 2 * high
    if high > MOST_REQUESTS:
        return MOST_REQUESTS
    while high - low > max(1, low // 10):
        middle = (low + high) // 2
        low, high = (middle, high) if others.fits(problem, middle) else (low, middle)
    return low


def _narrower_weights(others: _Others, problem: Problem) -> Iterator[Advice]:
    """Weights in 8 and in 4 bits, where they are as built."""
    used = problem.kept.num_devices if problem.kept is not None else 0
    if others.requests.weights != "as-built":
        return
    for weights in NARROWER:
        best = others.at(problem, weights=weights).solved
        gain = problem.gain(best)
        if best is not None and gain > WORTH:
            what = "the first token so many times sooner" if problem.job.objective == "latency" else "tokens/s"
            figure = f"{gain:.2f}x" if problem.job.objective == "latency" else f"{gain - 1:+.0%}"
            yield Advice(
                code="weights", gain=gain, basis="solved",
                message=f"--weights {weights}: {figure} {what}"
                f"{' on one device' if best.num_devices == 1 < used else ''}; answers change a little",
            )  # fmt: skip


def _from_requests(others: _Others, problem: Problem) -> Iterator[Advice]:
    """The least number of requests at once, a power of two, at which splitting beats one device."""
    kept, now = problem.kept, others.requests.concurrency
    if problem.job.objective == "latency" or len(problem.cluster.devices) < 2 or kept is None or problem.alone is None:
        return
    most = now if kept.num_devices > 1 else 4 * now
    for count in (2**exponent for exponent in range(0 if most == now else (now + 1).bit_length(), most.bit_length())):
        served = others.at(problem, concurrency=count)
        split, single = served.solved, served.alone
        if split is None or single is None:
            return
        if split.num_devices > 1 and single.step_seconds > split.step_seconds * WORTH:
            yield Advice(
                code="splitting", gain=None, basis="solved",
                message=f"splitting pays from {count} request{'s' if count > 1 else ''} at once: "
                f"{single.step_seconds / split.step_seconds:.2f}x {single.devices[0][0]} alone",
            )  # fmt: skip
            return
    if most != now:
        yield Advice(
            code="splitting", gain=None, basis="solved",
            message=f"splitting does not pay for up to {2 ** (most.bit_length() - 1)} requests at once either",
        )  # fmt: skip
