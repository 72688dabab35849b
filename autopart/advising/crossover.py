"""One device against several: by how much, from which batch, link and size of model on, and what bounds it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from autopart.advising.sensitivity import links_in_use
from autopart.advising.whatif import Problem, bracket
from autopart.schema.advice import Advice, Variant
from autopart.schema.problem import Candidate
from autopart.units import format_rate, format_seconds

__all__ = ["FAR", "WORTH", "bound", "splitting"]

WORTH = 1.02
"""less of a gain is not said"""

FAR = 1024.0
"""the least and the most multiple of a link or a model at which splitting is looked at"""

MOST_MICROBATCHES = 64


def splitting(problem: Problem) -> Iterator[Advice]:
    """One device against several: by how much, and from which batch, link and size of model on."""
    single, kept = problem.alone, problem.kept
    if len(problem.cluster.devices) < 2 or single is None or kept is None:
        return
    pays = kept.num_devices > 1
    name = single.devices[0][0]
    word = (
        f"splitting pays: {1 / problem.gain(single):.2f}x {name} alone" if pays
        else f"splitting does not pay: {name} alone is best"
    )
    found = list(filter(None, (
        _from_batch(problem, single, pays), _from_link(problem, pays), _from_size(problem, pays)
    )))  # fmt: skip
    if pays:
        message = word + (f"; it does {', '.join(found)}" if found else "")
    else:
        batch = "" if problem.generates or problem.job.objective == "latency" else "however large the batch, "
        never = f", {batch}however fast the links, however large the layers (each by itself)"
        message = word + (f"; it would {', or '.join(found)}" if found else never)
    yield Advice(code="splitting", message=message, gain=None, basis="solved")


def _is_split(problem: Problem) -> bool:
    return problem.solved is not None and problem.solved.num_devices > 1


def _from_batch(problem: Problem, single: Variant, pays: bool) -> str:
    """The least batch, in micro-batches of the plan's size, whose split beats one device at its rate for the batch."""
    if problem.job.objective == "latency" or problem.generates:
        return ""
    size, count = problem.chosen.graph.batch_size, 1
    most = problem.plan.schedule.num_microbatches if pays else MOST_MICROBATCHES
    while count <= most:
        best = problem.with_batch(count).best
        split = best is not None and best.num_devices > 1
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


def bound(problem: Problem) -> Iterator[Advice]:
    """Amdahl's law: what is not split bounds what splitting gives (Amdahl 1967)."""
    alone = len(problem.cluster.devices) < 2 or any(len(stage.devices) > 1 for stage in problem.plan.stages)
    if problem.job.objective == "latency" or alone:
        return
    if problem.generates:
        yield from _bound_of_text(problem)
        return
    items, fastest = _items(problem, problem.chosen)
    longest, first, last = max(items)
    if longest <= 0:
        return
    layers = problem.chosen.graph.layers
    name = layers[first].name + (f" … {layers[last - 1].name}" if last - first > 1 else "")
    yield Advice(
        code="bound", gain=None, basis="simulated",
        message=f"stages of one device each give at most {fastest / longest:.3g}x the fastest device's rate, "
        f"however many there are: {name} is one layer and takes {longest / fastest:.0%} of that device's time",
    )  # fmt: skip


def _bound_of_text(problem: Problem) -> Iterator[Advice]:
    """Splitting text: a request's next token needs its last one, and every group reads the weights anew."""
    single = problem.alone
    if single is None:
        return
    least = []
    for case in problem.cases:
        count = case.candidates[0].num_microbatches // case.job.rounds
        items, _ = _items(problem, case.candidates[0])
        least.append((max(count * max(items)[0], sum(each for each, _, _ in items)), count))
    seconds, count = min(least)
    requests, many = problem.job.cache_sequences, "s" if count > 1 else ""
    yield Advice(
        code="bound", gain=None, basis="simulated",
        message=f"stages of one device each give at most {single.step_seconds / seconds:.3g}x the best single device's "
        f"rate: with {requests} at once, in {count} group{many}, a token of each takes {format_seconds(seconds)} at "
        "least, without links and in the finest cuts",
    )  # fmt: skip


def _items(problem: Problem, candidate: Candidate) -> tuple[list[tuple[float, int, int]], float]:
    """What legal cuts leave in one piece: (seconds where that is least, first, last); and the fastest device's sum."""
    graph, rows = candidate.graph, candidate.profile.kinds
    used = {device.kind: device.speed for device in problem.cluster.devices}
    seconds = [
        [(f + b) / used[row.kind] for f, b in zip(row.forward_seconds, row.backward_seconds, strict=True)]
        for row in rows if row.kind in used
    ]
    ends = (0, *sorted(set(graph.legal_cuts)), len(graph.layers))
    return [(min(sum(row[a:b]) for row in seconds), a, b) for a, b in pairwise(ends)], min(map(sum, seconds))
