"""What would make a plan better, and what it hangs on: every piece of advice is solved or simulated, with its gain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise

from autopart import planning
from autopart.advising.sensitivity import links_in_use, sensitivities
from autopart.advising.whatif import SAME, Problem, bracket, first_factor
from autopart.progress import Progress, silent
from autopart.schema.advice import Advice, Variant
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from autopart.units import format_rate, format_seconds

__all__ = ["advised"]

WORTH = 1.02
"""less of a gain is not said"""

FAR = 1024.0
"""the least and the most multiple of a link or a model at which splitting is looked at"""

MOST_MICROBATCHES = 64


def advised(plan: Plan, candidates: tuple[Candidate, ...], *, progress: Progress = silent) -> Plan:
    """The plan with advice, and with what would change it; as it is where that cannot be said of its kind.

    That can be said of the fastest plans whose stages have one device each: not of other objectives, simpler methods,
    schedules with several stages per device, groups of devices, or generated text.  ``candidates`` are those that the
    planner had.
    """
    problem = Problem(plan=plan, candidates=candidates, cluster=plan.cluster, job=plan.job)
    if plan.generation is not None or not planning.can_vary(plan) or problem.kept is None:
        return plan
    if abs(problem.kept.step_seconds / _predicted(plan) - 1) > SAME:
        return plan  # what is solved here is not what was planned
    found: list[Advice] = []
    for done, find in enumerate(FINDERS):
        progress("what if", done, len(FINDERS) + 1)
        found += find(problem)
    progress("what if", len(FINDERS), len(FINDERS) + 1)
    changes = sensitivities(problem.lean)
    progress("what if", len(FINDERS) + 1, len(FINDERS) + 1)
    return dataclasses.replace(
        plan, advice=tuple(sorted(found, key=lambda each: -(each.gain or 0.0))), sensitivity=changes
    )


def _predicted(plan: Plan) -> float:
    return plan.proof.objective_seconds if plan.job.objective == "latency" else plan.prediction.step_seconds


def _gain(problem: Problem, other: Variant | None) -> float:
    """How many times this plan's rate another has (of objective latency: how many times sooner it is done)."""
    kept = problem.kept
    assert kept is not None, "advice is about a plan that fits"
    if other is None:
        return 0.0
    if problem.job.objective == "latency":
        return kept.step_seconds / other.step_seconds
    return other.samples_per_second / kept.samples_per_second


def _splitting(problem: Problem) -> Iterator[Advice]:
    """One device against several: by how much, and from which batch, link and size of model on."""
    if len(problem.cluster.devices) < 2:
        return
    single = problem.with_job(stages=1, microbatches=None).solved
    kept, num = problem.kept, len(problem.plan.stages)
    assert kept is not None, "advice is about a plan that fits"
    if single is None:
        return
    pays = num > 1
    word = (
        f"splitting pays: {1 / _gain(problem, single):.2f}x {single.devices[0][0]} alone" if pays
        else f"splitting does not pay: {single.devices[0][0]} alone is best"
    )
    found = list(filter(None, (
        _from_batch(problem, single, pays), _from_link(problem, pays), _from_size(problem, pays)
    )))  # fmt: skip
    if pays:
        message = word + (f"; it does {', '.join(found)}" if found else "")
    else:
        never = ", however large the batch, fast the links or large the layers"
        message = word + (f"; it would {', or '.join(found)}" if found else never)
    yield Advice(code="splitting", message=message, gain=None, basis="solved")


def _is_split(problem: Problem) -> bool:
    return problem.solved is not None and len(problem.solved.devices) > 1


def _from_batch(problem: Problem, single: Variant, pays: bool) -> str:
    """The least batch, in micro-batches of the plan's size, whose split beats one device at its rate for the batch."""
    if problem.job.objective == "latency":
        return ""
    size, count = problem.chosen.graph.batch_size, 1
    most = problem.plan.schedule.num_microbatches if pays else MOST_MICROBATCHES
    while count <= most:
        best = problem.with_batch(count).best
        split = best is not None and len(best.devices) > 1
        if split and best is not None and best.samples_per_second > single.samples_per_second * WORTH:
            return f"from a batch of {count * size} ({count} micro-batch{'es' if count > 1 else ''} of {size})"
        count *= 2
    return ""


def _from_link(problem: Problem, pays: bool) -> str:
    """The link speed at which splitting begins to pay."""
    found = bracket(lambda each: _is_split(problem.lean.with_links(each)) != pays, 1 / FAR if pays else FAR, steps=5)
    if found is None:
        return "with links of any speed" if pays else ""
    factor = found[0 if pays else 1]
    rates = [each.bandwidth_bytes_per_second * factor for each in links_in_use(problem) if each is not None]
    if rates:
        return f"with links of {format_rate(min(rates))} and more"
    return f"with links of {factor:.3g} times their speed and more"


def _from_size(problem: Problem, pays: bool) -> str:
    """The size of the model at which splitting begins to pay, as many layers and as it is cut now."""
    found = bracket(lambda each: _is_split(problem.lean.with_size(each)) != pays, 1 / FAR if pays else FAR, steps=5)
    if found is None:
        return ""
    factor = found[0 if pays else 1]
    return f"for models with {factor:.3g} times the parameters in each layer and more"


def _bound(problem: Problem) -> Iterator[Advice]:
    """Amdahl's law: what is not split bounds what splitting gives (Amdahl 1967)."""
    graph, rows = problem.chosen.graph, problem.chosen.profile.kinds
    used = {device.kind: device.speed for device in problem.cluster.devices}
    if problem.job.objective == "latency" or len(problem.cluster.devices) < 2:
        return
    seconds = [
        [(f + b) / used[row.kind] for f, b in zip(row.forward_seconds, row.backward_seconds, strict=True)]
        for row in rows if row.kind in used
    ]
    fastest = min(seconds, key=sum)
    ends = (0, *sorted(set(graph.legal_cuts)), len(graph.layers))
    items = [(min(sum(row[a:b]) for row in seconds), a, b) for a, b in pairwise(ends)]
    longest, first, last = max(items)
    if longest <= 0:
        return
    name = graph.layers[first].name + (f" … {graph.layers[last - 1].name}" if last - first > 1 else "")
    yield Advice(
        code="bound", gain=None, basis="simulated",
        message=f"stages of one device each give at most {sum(fastest) / longest:.3g}x the fastest device's rate, "
        f"however many there are: {name} is one layer and takes {longest / sum(fastest):.0%} of that device's time",
    )  # fmt: skip


def _leave_out(problem: Problem) -> Iterator[Advice]:
    """For each kind that has idle devices, what using one more of it would cost."""
    idle = {each.device for each in problem.plan.excluded}
    groups: dict[tuple[object, ...], list[str]] = {}
    for device in problem.cluster.devices:
        groups.setdefault((device.kind, device.node, device.memory_bytes, device.speed), []).append(device.name)
    for names in groups.values():
        left = [name for name in names if name in idle]
        if not left:
            continue
        using = (names[0], len(names) - len(left) + 1)
        other = planning.best_variant(problem.candidates, problem.cluster, problem.job, using=using)
        gain = _gain(problem, other)
        if other is not None and 0 < gain < 1 / WORTH:
            what = left[0] if len(left) == 1 else f"{left[0]} … {left[-1]}"
            yield Advice(
                code="leave-out", message=f"leave {what} out: {1 / gain:.2f}x faster without", gain=None, basis="solved"
            )


def _adds(problem: Problem) -> Iterator[Advice]:
    """What the last device of every kind in use adds."""
    used = [problem.cluster.device(stage.devices[0]) for stage in problem.plan.stages]
    if len(used) < 2 or problem.job.stages is not None or problem.job.pins or problem.job.forbidden:
        return
    for device in {each.kind: each for each in used}.values():
        best = problem.without(device.name).solved
        if best is None:
            yield Advice(code="device-adds", message=f"without {device.name} nothing fits", gain=None, basis="solved")
            continue
        gain = _gain(problem, best)
        word = f"{device.name} adds {1 / gain - 1:.1%}" if gain < 1 else f"{device.name} adds nothing"
        yield Advice(
            code="device-adds", message=f"{word}: without it {format_seconds(best.step_seconds)} a step",
            gain=None, basis="solved",
        )  # fmt: skip


def _larger_batch(problem: Problem) -> Iterator[Advice]:
    """More micro-batches of the same size: the bubble's share of the step is (S - 1) / (M + S - 1)."""
    count = problem.plan.schedule.num_microbatches
    if len(problem.plan.stages) < 2 or problem.job.objective == "latency":
        return
    best = problem.with_batch(4 * count).best
    gain, size = _gain(problem, best), problem.chosen.graph.batch_size
    if gain > WORTH:
        yield Advice(
            code="larger-batch", gain=gain, basis="solved",
            message=f"raise micro-batches from {count} to {4 * count} with a batch of {4 * count * size}: "
            f"{gain - 1:+.0%} samples/s",
        )  # fmt: skip


def _freed(code: str, word: str, **words: object) -> Callable[[Problem], Iterator[Advice]]:
    """Advice to leave a choice to the planner that the user has made."""

    def find(problem: Problem) -> Iterator[Advice]:
        changed = {name: value for name, value in words.items() if getattr(problem.job, name) != value}
        if not changed or (code == "schedule" and problem.job.mode == "infer"):
            return
        best = problem.with_job(**changed).best
        gain = _gain(problem, best)
        if best is not None and gain > WORTH:
            count = f" ({best.num_microbatches} micro-batches)" if code == "microbatches" else ""
            yield Advice(code=code, message=f"{word}{count}: {gain - 1:+.0%}", gain=gain, basis="solved")  # type: ignore[arg-type]

    return find


def _compress(problem: Problem) -> Iterator[Advice]:
    """Encoding what crosses from device to device."""
    if len(problem.plan.stages) < 2 or problem.job.compress != "none":
        return
    gain = _gain(problem, problem.with_job(compress="auto").best)
    if gain > WORTH:
        yield Advice(
            code="compress", gain=gain, basis="solved",
            message=f"--compress auto encodes what crosses from device to device: {gain - 1:+.0%}; "
            "results change a little",
        )  # fmt: skip


def _uneven(problem: Problem) -> Iterator[Advice]:
    """The stage that the others wait for, and what of it is one layer."""
    kept, plan = problem.kept, problem.plan
    if kept is None or len(kept.stage_seconds) < 2 or problem.job.objective == "latency":
        return
    busiest = max(range(len(plan.stages)), key=kept.stage_seconds.__getitem__)
    others = [each for index, each in enumerate(kept.stage_seconds) if index != busiest]
    longer = kept.stage_seconds[busiest] / (sum(others) / len(others))
    if longer < 1.05:
        return
    device = problem.cluster.device(plan.stages[busiest].devices[0])
    row = problem.chosen.profile.kind(device.kind)
    inside = range(kept.boundaries[busiest], kept.boundaries[busiest + 1])
    largest = max(inside, key=lambda at: row.forward_seconds[at] + row.backward_seconds[at])
    seconds = (row.forward_seconds[largest] + row.backward_seconds[largest]) / device.speed
    even = sum(kept.stage_seconds) / len(plan.stages)
    step = kept.step_seconds - (kept.num_microbatches - 1) * (kept.stage_seconds[busiest] - even)
    name = problem.chosen.graph.layers[largest].name
    yield Advice(
        code="uneven", gain=None, basis="simulated",
        message=f"stage {busiest} ({device.name}) takes {longer - 1:.0%} longer than the others do on average; its "
        f"longest layer, {name}, is {seconds / kept.stage_seconds[busiest]:.0%} of it. Were all stages as long, a step "
        f"would be {kept.step_seconds / step:.2f}x as fast",
    )  # fmt: skip


def _link(problem: Problem) -> Iterator[Advice]:
    """The link speed below which a step of this plan takes a tenth longer than with links that take no time."""
    kept, rules = problem.kept, links_in_use(problem)
    free = problem.with_links(FAR).kept
    if kept is None or free is None or len(problem.plan.stages) < 2:
        return
    share = 1 - free.step_seconds / kept.step_seconds
    limit = 1.1 * free.step_seconds

    def slow(factor: float) -> bool:
        changed = problem.with_links(factor).kept
        return changed is not None and changed.step_seconds > limit

    holds = slow(1.0)
    factor = first_factor(lambda each: slow(each) != holds, FAR if holds else 1 / FAR, steps=8)
    if factor is None:
        return
    rates = [rule.bandwidth_bytes_per_second * factor for rule in rules if rule is not None]
    where = format_rate(min(rates)) if rates else f"{factor:.3g} times their speed"
    one = len(rules) == 1 and rules[0] is not None
    state = f"links take {share:.0%} of a step now" if share >= 0.005 else "links hardly count now"
    yield Advice(
        code="link", gain=None, basis="simulated",
        message=f"{'the link' if one else 'links'} slow{'s' if one else ''} a step by a tenth below {where}; {state}",
    )


FINDERS: tuple[Callable[[Problem], Iterator[Advice]], ...] = (
    _splitting, _bound, _leave_out, _adds, _larger_batch,
    _freed("microbatches", "leave --microbatches to the planner", microbatches=None),
    _freed("schedule", "leave --schedule to the planner", schedule=None), _compress, _uneven, _link,
)  # fmt: skip
