"""Where a plan's devices wait, and what would shorten that: each change is simulated, and told with its gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from autopart.planning.searching.options import LOOPED, Option, evaluate
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Baseline, PlanWarning
from autopart.units import format_seconds

__all__ = ["about_waiting"]

LEAST_UTILISATION, MOST_BUBBLE = 0.8, 0.1
WORTH = 1.02
"""times the samples per second; less is not worth a word"""
MOST_COMPUTATIONS = 20_000
"""of a schedule, that are simulated to say what more micro-batches would give"""


def about_waiting(
    option: Option, cluster: Cluster, job: Job, baselines: tuple[Baseline, ...]
) -> tuple[PlanWarning, ...]:
    """Warnings of idle devices and of a single device that is faster; none of idling where one request is timed."""
    idle = () if job.objective == "latency" or option.layout.num_stages == 1 else tuple(_idle(option, cluster, job))
    return (*idle, *_single(job, baselines))


def _idle(option: Option, cluster: Cluster, job: Job) -> Iterator[PlanWarning]:
    layout, step = option.layout, option.step_seconds
    shares = [0.0] * (max(layout.ranks) + 1)
    for index, rank in enumerate(layout.ranks):
        shares[rank] += option.busy_seconds(index) / step
    lowest, bubble, num = min(shares), 1 - sum(shares) / len(shares), layout.num_microbatches
    if lowest >= LEAST_UTILISATION and bubble <= MOST_BUBBLE:
        return
    found = []
    if lowest < LEAST_UTILISATION:
        name = tuple(dict.fromkeys(layout.devices))[shares.index(lowest)]
        found.append(("low-utilisation", f"{name} computes {lowest:.0%} of the time"))
    if bubble > MOST_BUBBLE:
        found.append(("bubble", f"the devices idle {bubble:.0%} of a step"))
    if num < len(shares):
        found.append(("few-microbatches", f"{_count(num)} cannot keep {len(shares)} stages busy"))
    what = _what_helps(option, cluster, job)
    for code, message in found:
        yield PlanWarning(code=code, message=message, suggestion=what)
        what = f"what helps against {found[0][0]} helps here"


def _single(job: Job, baselines: tuple[Baseline, ...]) -> Iterator[PlanWarning]:
    single = next(each for each in baselines if each.name == "single-device")
    timed = job.objective in ("throughput", "latency") and job.max_usd_per_hour is None
    if timed and single.factor is not None and single.factor < 1 - 1e-6:
        yield PlanWarning(
            code="single-device-faster",
            message=f"one device alone takes {format_seconds(single.step_seconds or 0.0)} a step, the plan longer",
            suggestion="leave --microbatches, --stages and --method to the planner",
        )


def _what_helps(option: Option, cluster: Cluster, job: Job) -> str:
    """The changes that gain something, the best first."""
    rate = option.candidate.batch / option.step_seconds
    gains = sorted(((found / rate, words) for words, found in _changes(option, cluster, job)), reverse=True)
    worth = [f"{words}: {gain - 1:+.0%} samples/s" for gain, words in gains if gain >= WORTH]
    if worth:
        return "; ".join(worth) + " (simulated)"
    return (
        "none of more micro-batches, links that take no time and zero-bubble gives 2 % (simulated): only stages of "
        "more equal time would, by other devices or a model that can be cut more finely"
    )


def _changes(option: Option, cluster: Cluster, job: Job) -> Iterator[tuple[str, float]]:
    """Words, and samples per second with this plan's stages."""
    more = _more_microbatches(option, cluster, job)
    if more is not None:
        candidate = more.candidate
        yield (
            f"--batch {candidate.batch} in {_count(candidate.num_microbatches)} of the same size",
            candidate.batch / more.step_seconds,
        )
    if any(cost.receive_seconds for cost in option.costs):
        costs = tuple(replace(cost, receive_seconds=0.0, return_seconds=0.0) for cost in option.costs)
        words = "links that take no time, the most that faster ones or --compress can give"
        yield words, option.candidate.batch / replace(option, costs=costs).step_seconds
    plain = option.training and not option.layout.ways and option.layout.schedule not in LOOPED
    if plain and job.objective == "throughput":
        other = evaluate(option.candidate, cluster, job, replace(option.layout, schedule="zero-bubble"))
        if not other.misfit:
            yield "--schedule zero-bubble", option.candidate.batch / other.step_seconds


def _more_microbatches(option: Option, cluster: Cluster, job: Job) -> Option | None:
    """The same stages with four times the micro-batches, or twice; None if that does not fit or is too long to say."""
    for factor in (4, 2):
        num = factor * option.layout.num_microbatches
        if num * option.layout.num_stages > MOST_COMPUTATIONS:
            continue
        candidate = replace(option.candidate, num_microbatches=num)
        changed = replace(job, batch=candidate.batch, microbatches=None)
        other = evaluate(candidate, cluster, changed, replace(option.layout, num_microbatches=num))
        if not other.misfit:
            return other
    return None


def _count(num: int) -> str:
    return f"{num} micro-batch{'es' if num != 1 else ''}"
