"""What other requests would give: more at once, weights in fewer bits, and from how many on splitting pays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from autopart.advising import WORTH, Finder, Problem
from autopart.generating.maker import Maker
from autopart.schema.advice import Advice, Variant
from autopart.schema.generation import WeightFormat
from autopart.units import format_seconds

__all__ = ["request_finders"]

MOST_REQUESTS = 1024
"""at once, that are looked at"""

NARROWER: tuple[WeightFormat, ...] = ("int8", "int4")


def request_finders(maker: Maker) -> tuple[Finder, ...]:
    """Advice about the requests of a plan, solved anew with other ones."""
    return tuple(functools.partial(find, maker) for find in (_more_at_once, _narrower_weights, _from_requests))


def _at(maker: Maker, problem: Problem, **words: object) -> Problem:
    """The plan's problem with other requests, in any number of groups."""
    first, *others = maker.of(dataclasses.replace(maker.requests, **words)).cases()  # type: ignore[arg-type]
    return dataclasses.replace(problem, candidates=first.candidates, job=first.job, others=tuple(others))


def _more_at_once(maker: Maker, problem: Problem) -> Iterator[Advice]:
    """Four times as many requests, or twice if those do not fit; and how many do."""
    now = maker.requests.concurrency
    if problem.job.objective == "latency":
        return
    best: tuple[int, Variant] | None = None
    for factor in (4, 2):
        solved = _at(maker, problem, concurrency=factor * now).solved
        if solved is not None:
            best = factor * now, solved
            break
    most = _most_that_fit(maker, problem, best[0] if best else now)
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


def _most_that_fit(maker: Maker, problem: Problem, least: int) -> int:
    """Requests at once for whose caches there is room, up to a twentieth."""
    def fits(number: int) -> bool:
        return _at(maker, problem, concurrency=number).solved is not None

    low, high = least, 2 * least
    while high <= MOST_REQUESTS and fits(high):
        low, high = high, 2 * high
    if high > MOST_REQUESTS:
        return MOST_REQUESTS
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _narrower_weights(maker: Maker, problem: Problem) -> Iterator[Advice]:
    """Weights in 8 and in 4 bits, where they are as built."""
    if maker.requests.weights != "as-built":
        return
    for weights in NARROWER:
        best = _at(maker, problem, weights=weights).solved
        gain = problem.gain(best)
        if best is not None and gain > WORTH:
            what = "the first token so many times sooner" if problem.job.objective == "latency" else "tokens/s"
            figure = f"{gain:.2f}x" if problem.job.objective == "latency" else f"{gain - 1:+.0%}"
            yield Advice(
                code="weights", gain=gain, basis="solved",
                message=f"--weights {weights}: {figure} {what}"
                f"{' on one device' if best.num_devices == 1 else ''}; answers change a little",
            )  # fmt: skip


def _from_requests(maker: Maker, problem: Problem) -> Iterator[Advice]:
    """The least number of requests at once, a power of two, at which splitting beats one device."""
    if problem.job.objective == "latency" or len(problem.cluster.devices) < 2 or problem.alone is None:
        return
    count, most = 1, 4 * maker.requests.concurrency
    while count <= most:
        served = _at(maker, problem, concurrency=count)
        split, single = served.solved, served.alone
        if split is None:
            return
        if split.num_devices > 1 and single is not None and single.step_seconds > split.step_seconds * WORTH:
            yield Advice(
                code="splitting", gain=None, basis="solved",
                message=f"splitting pays from {count} request{'s' if count > 1 else ''} at once: "
                f"{single.step_seconds / split.step_seconds:.2f}x {single.devices[0][0]} alone",
            )  # fmt: skip
            return
        count *= 2
    yield Advice(
        code="splitting", gain=None, basis="solved",
        message=f"splitting does not pay for up to {count // 2} requests at once",
    )  # fmt: skip
