"""What would make a plan better, and what it hangs on: every piece of advice is solved or simulated, with its gain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from autopart import planning
from autopart.advising.crossover import FAR, WORTH, bound, splitting
from autopart.advising.sensitivity import links_in_use, sensitivities
from autopart.advising.whatif import SAME, Case, Problem, first_factor
from autopart.progress import Progress, silent
from autopart.schema.advice import Advice, Variant
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from autopart.units import format_rate, format_seconds

__all__ = ["Finder", "advised"]

WIDEST = 8
"""devices of a stage that is tried"""

SAME_ROUND = 0.05
"""relative: of generated text a round is priced with its prefills' transfers as one, and they are several"""

Finder = Callable[[Problem], Iterator[Advice]]


def advised(
    plan: Plan, candidates: tuple[Candidate, ...], *, others: tuple[Case, ...] = (), more: tuple[Finder, ...] = (),
    progress: Progress = silent,
) -> Plan:
    """The plan with advice, and with what would change it; as it is where that cannot be said of its kind.

    That can be said of the fastest plans, not of other objectives or simpler methods.  Under schedules with several
    stages per device this plan is simulated, its cuts moved anew for every change.

    ``candidates`` are those that the planner had; where text is generated, for the plan's number of groups, with
    ``others`` for other numbers.  ``more`` advice is sought in the same way.
    """
    problem = Problem(plan=plan, candidates=candidates, cluster=plan.cluster, job=plan.job, others=others)
    if not planning.can_vary(plan) or problem.kept is None:
        return plan
    if abs(problem.kept.step_seconds / _predicted(plan) - 1) > (SAME_ROUND if problem.generates else SAME):
        return plan  # what is solved here is not what was planned
    looped = planning.is_looped(plan.job)
    finders = LOOPED_FINDERS if looped else (*FINDERS, *more)
    found: list[Advice] = []
    for done, find in enumerate(finders):
        progress("what if", done, len(finders) + 1)
        found += find(problem)
    progress("what if", len(finders), len(finders) + 1)
    found = [_by_simulation(each) for each in found] if looped else found
    changes = sensitivities(problem.lean)
    progress("what if", len(finders) + 1, len(finders) + 1)
    return dataclasses.replace(
        plan, advice=tuple(sorted(found, key=lambda each: -(each.gain or 0.0))), sensitivity=changes
    )


def _by_simulation(advice: Advice) -> Advice:
    """Of looped plans: only another schedule is planned anew."""
    return advice if advice.code == "schedule" else dataclasses.replace(advice, basis="simulated")


def _predicted(plan: Plan) -> float:
    if plan.job.objective == "latency":
        return plan.proof.objective_seconds
    return plan.prediction.step_seconds if plan.generation is None else plan.generation.time_per_output_token_seconds


def _unit(problem: Problem) -> str:
    if problem.job.objective == "latency" and problem.generates:
        return "to the first token"
    return "a token of each request" if problem.generates else "a step"


def _groups(problem: Problem) -> Iterator[Advice]:
    """Several devices as one stage, which the planner does only if it is asked to."""
    job = problem.job
    if problem.generates or job.stages is not None or max(job.tensor_parallel, job.data_parallel) > 1:
        return
    if job.stage_dtype != "keep":  # groups are refused with it
        return
    alike: dict[tuple[str, str], int] = {}
    for device in problem.cluster.devices:
        alike[device.kind, device.node] = alike.get((device.kind, device.node), 0) + 1
    widest = 1 << (min(max(alike.values()), WIDEST).bit_length() - 1)
    for word, option in (("tensor_parallel", "--tensor-parallel"), ("data_parallel", "--data-parallel")):
        best = problem.with_job(**{word: widest}).best if widest > 1 else None
        gain = problem.gain(best)
        if best is not None and gain > WORTH:
            yield Advice(
                code="groups", gain=gain, basis="solved", message=f"{option} {widest} lets devices work as one stage: "
                f"{gain - 1:+.0%} ({_grouping(best)})",
            )  # fmt: skip


def _grouping(variant: Variant) -> str:
    """``stages on 2, 2 and 1 devices``."""
    sizes = [str(len(names)) for names in variant.devices]
    if len(sizes) == 1:
        return f"one stage on {sizes[0]} devices"
    return f"stages on {', '.join(sizes[:-1])} and {sizes[-1]} devices"


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
        other = problem.found(using=using)
        gain = problem.gain(other)
        if other is not None and 0 < gain < 1 / WORTH:
            what = left[0] if len(left) == 1 else f"{left[0]} … {left[-1]}"
            yield Advice(
                code="leave-out", message=f"leave {what} out: {1 / gain:.2f}x faster without", gain=None, basis="solved"
            )


def _adds(problem: Problem) -> Iterator[Advice]:
    """What the last device of every kind in use adds."""
    used = [problem.cluster.device(name) for stage in problem.plan.stages for name in stage.devices]
    if len(used) < 2 or problem.job.stages is not None or problem.job.pins or problem.job.forbidden:
        return
    for device in {each.kind: each for each in used}.values():
        best = problem.without(device.name).solved
        if best is None:
            what = "nothing tried fits" if planning.is_looped(problem.job) else "nothing fits"
            yield Advice(code="device-adds", message=f"without {device.name} {what}", gain=None, basis="solved")
            continue
        gain = problem.gain(best)
        word = f"{device.name} adds {1 / gain - 1:.1%}" if gain < 1 else f"{device.name} adds nothing"
        yield Advice(
            code="device-adds", message=f"{word}: without it {format_seconds(best.step_seconds)} {_unit(problem)}",
            gain=None, basis="solved",
        )  # fmt: skip


def _larger_batch(problem: Problem) -> Iterator[Advice]:
    """More micro-batches of the same size: the bubble's share of the step is (S - 1) / (M + S - 1)."""
    count = problem.plan.schedule.num_microbatches
    if len(problem.plan.stages) < 2 or problem.job.objective == "latency" or problem.generates:
        return
    best = problem.with_batch(4 * count).best
    gain, size = problem.gain(best), problem.chosen.graph.batch_size
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
        if not changed or problem.generates or (code == "schedule" and problem.job.mode == "infer"):
            return
        best = problem.with_job(**changed).best
        gain = problem.gain(best)
        if best is not None and gain > WORTH:
            count = f" ({best.num_microbatches} micro-batches)" if code == "microbatches" else ""
            yield Advice(code=code, message=f"{word}{count}: {gain - 1:+.0%}", gain=gain, basis="solved")  # type: ignore[arg-type]

    return find


def _compress(problem: Problem) -> Iterator[Advice]:
    """Encoding what crosses from device to device."""
    if len(problem.plan.stages) < 2 or problem.job.compress != "none" or problem.generates:
        return
    gain = problem.gain(problem.with_job(compress="auto").best)
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
    step = _evened(problem, kept)
    if longer < 1.05 or step >= kept.step_seconds:
        return
    yield Advice(
        code="uneven", gain=None, basis="simulated",
        message=f"stage {busiest} ({' + '.join(plan.stages[busiest].devices)}) takes {longer - 1:.0%} longer than the "
        f"others do on average{_longest_layer(problem, kept, busiest)}. Were all stages as long, {_unit(problem)} "
        f"would be {kept.step_seconds / step:.2f}x as fast",
    )  # fmt: skip


def _evened(problem: Problem, kept: Variant) -> float:
    """A step, or a round of tokens, if all stages took as long."""
    longest, even = max(kept.stage_seconds), sum(kept.stage_seconds) / len(kept.stage_seconds)
    if problem.generates:
        return max(kept.num_microbatches * even, sum(kept.stage_seconds))
    return kept.step_seconds - (kept.num_microbatches - 1) * (longest - even)


def _longest_layer(problem: Problem, kept: Variant, stage: int) -> str:
    """The longest layer of a stage on one device, and its share; of a group nothing is said."""
    devices = problem.plan.stages[stage].devices
    if len(devices) > 1:
        return ""
    device = problem.cluster.device(devices[0])
    row = problem.chosen.profile.kind(device.kind)
    inside = range(kept.boundaries[stage], kept.boundaries[stage + 1])
    largest = max(inside, key=lambda at: row.forward_seconds[at] + row.backward_seconds[at])
    seconds = (row.forward_seconds[largest] + row.backward_seconds[largest]) / device.speed
    name = problem.chosen.graph.layers[largest].name
    return f"; its longest layer, {name}, is {seconds / kept.stage_seconds[stage]:.0%} of it"


def _link(problem: Problem) -> Iterator[Advice]:
    """The link speed below which a step of this plan takes a tenth longer than with links that take no time."""
    kept, rules = problem.kept, links_in_use(problem)
    free = problem.with_links(FAR).kept
    if kept is None or free is None or kept.num_devices < 2:
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
    what = "the link slows" if one else "links slow"
    state = f"links take {share:.0%} of it now" if share >= 0.005 else "links hardly count now"
    yield Advice(
        code="link", gain=None, basis="simulated",
        message=f"{what} {_unit(problem)} by a tenth below {where}; {state}",
    )


def _as_it_is(problem: Problem) -> Iterator[Advice]:
    """What variants of a looped plan are."""
    yield Advice(
        code="schedule", gain=None, basis="simulated",
        message=f"--schedule {problem.job.schedule}: what changes do is simulated on this plan's devices in this "
        "order, with its cuts moved; other orders and numbers of stages are not tried again",
    )


_ANY_COUNT = _freed("microbatches", "leave --microbatches to the planner", microbatches=None)
_ANY_SCHEDULE = _freed("schedule", "leave --schedule to the planner", schedule=None)

FINDERS: tuple[Finder, ...] = (
    splitting, bound, _leave_out, _adds, _larger_batch, _ANY_COUNT, _ANY_SCHEDULE, _compress, _groups, _uneven, _link,
)  # fmt: skip

LOOPED_FINDERS: tuple[Finder, ...] = (
    splitting, bound, _adds, _larger_batch, _ANY_COUNT, _ANY_SCHEDULE, _compress, _link, _as_it_is
)
"""of plans with several stages per device; why devices are left out the plan says itself"""
