"""The optimizer that ends last, in every part of the search: against all paths of small instances, one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from autopart.planning import plan
from autopart.planning.costing.costs import updates_seconds
from autopart.planning.formula import last_update_seconds
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.bounds import prove
from autopart.planning.searching.chain import best_path, path_objective
from autopart.planning.searching.formulate import solve_path
from autopart.planning.searching.frontier import least_sum
from autopart.planning.searching.instance import Arcs, Instance
from autopart.planning.searching.network import lengths_of, network_of, shortest_path, through
from autopart.planning.searching.options import schedules
from autopart.planning.searching.prices import price_arcs
from autopart.planning.searching.relaxation import Window, relax
from autopart.planning.searching.updates import least_hidden, with_late_updates
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster
from autopart.schema.job import Job, SolverName
from autopart.schema.problem import Candidate
from tests.planning.problems import candidate, chain, cluster, device, link
from tests.planning.varied import every_option, late_problems, objective_along, varied_problems

Problem = tuple[Candidate, Cluster, Job]
Path = tuple[int, ...]

A_LITTLE = 1 + 1e-9

few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
some = settings(few, max_examples=40)

EFFORT = Effort(solver="auto", gap=1e-5, deadline=60.0, clock=lambda: 0.0)


def instance_of(problem: Problem) -> Instance:
    chosen, devices, job = problem
    return build_instance(chosen, devices, job, schedules(job)[0])


def paths_of(instance: Instance, arcs: Arcs) -> Iterator[Path]:
    """Every path over the arcs that takes no more devices than there are, holds its micro-batches and keeps C5, C8."""
    def begin(path: Path, boundary: int, before: int) -> Iterator[Path]:
        if boundary == instance.end:
            yield path
        for arc in np.flatnonzero((arcs.first == boundary) & (arcs.before == before)).tolist():
            yield from begin((*path, arc), int(arcs.last[arc]), int(arcs.after[arc]))

    for path in begin((), 0, instance.num_classes):
        chosen = list(path)
        used = np.bincount(arcs.group[chosen], arcs.width[chosen], instance.num_groups)
        behind = np.minimum(np.arange(len(path), 0, -1), instance.num_microbatches)
        if (
            (used <= instance.counts).all() and (arcs.most_in_flight[chosen] >= behind).all()
            and instance.num_stages in (None, len(path)) and len(path) <= instance.most_stages
        ):  # fmt: skip
            yield path


@st.composite
def late_instances(draw: st.DrawFn) -> Instance:
    """Some of the arcs of a late problem, so that the best path is often one whose last optimizer is behind."""
    problem = draw(late_problems())
    instance = build_instance(*problem, schedules(problem[2])[0])
    paths = list(paths_of(instance, instance.arcs))
    dice, kept = draw(st.randoms(use_true_random=False)), np.zeros(len(instance.arcs), dtype=np.bool_)
    kept[[arc for arc in range(len(kept)) if dice.random() < 0.2]] = True
    for path in dice.sample(paths, min(2, len(paths))):
        kept[list(path)] = True
    return replace(instance, arcs=with_late_updates(instance.arcs.keep(kept)))


def cost_of(arcs: Arcs, path: Path) -> float:
    """As the head of ``updates`` has it, stage by stage."""
    whole, saved, late = 0.0, 0.0, 0.0
    for arc in path:
        whole += float(arcs.weight[arc])
        late = max(late, float(arcs.update[arc]) - saved)
        saved += float(arcs.saves[arc])
    return whole + late


@some
@given(varied_problems(tied=False))
def test_paths_cost_what_their_plans_do_and_every_plan_is_at_least_a_path(problem: Problem) -> None:
    instance = instance_of((problem[0], problem[1], replace(problem[2], schedule=schedules(problem[2])[0])))
    objectives = [objective_along(instance, path) for path in paths_of(instance, instance.arcs)]
    plans = [o.objective_seconds for o in every_option(problem) if o.layout.schedule == instance.schedule]
    assert bool(objectives) == bool(plans)
    if plans:  # ways that are never better have no arcs
        assert min(objectives) == pytest.approx(min(plans), rel=1e-9)


@some
@given(varied_problems(training=True, wished=False, tied=False))
def test_no_plan_is_simulated_to_take_longer_than_its_objective(problem: Problem) -> None:
    """Under 1F1B; GPipe's forwards and backwards have each a slowest stage of their own."""
    chosen, devices, job = problem
    job = replace(job, objective="throughput", schedule="1f1b")
    for option in itertools.islice(every_option((chosen, devices, job)), 0, None, 5):
        assert option.step_seconds <= option.objective_seconds * A_LITTLE
        assert updates_seconds(option.costs) >= option.costs[0].optimizer_seconds


@some
@given(late_instances(), st.floats(0, 0.2))
def test_bounds_over_the_arcs_are_below_every_path(instance: Instance, price: float) -> None:
    """Network, prices and frontier; ``through`` is below every path that uses the arc."""
    arcs = instance.arcs
    paths = list(paths_of(instance, arcs))
    assume(paths)
    network = network_of(instance, arcs)
    weights = arcs.weight + price * arcs.width
    found = lengths_of(network, weights)
    each = through(network, found)
    priced, least = price_arcs(instance, arcs, math.inf, None), least_sum(instance, arcs, 10**9)
    for path in paths:
        total = cost_of(arcs, path)
        assert arcs.sum_along(path) == pytest.approx(total)
        paid = total + price * float(arcs.width[list(path)].sum())
        assert found.least(network) <= paid * A_LITTLE
        assert all(each[arc] <= paid * A_LITTLE for arc in path)
        assert priced.bound <= total * A_LITTLE
        assert all(priced.through[arc] <= total * A_LITTLE for arc in path)
        assert least.total <= total * A_LITTLE
    met = cost_of(replace(arcs, weight=weights), tuple(shortest_path(network, found)))
    assert met >= found.least(network) / A_LITTLE
    assert cost_of(arcs, least.path) >= least.total / A_LITTLE


@few
@given(late_instances(), st.integers(0, 5))
def test_windows_are_bounded_from_below(instance: Instance, place: int) -> None:
    """Of the paths whose largest stage time is in a window none costs less than its relaxation."""
    arcs = instance.arcs
    times = {path: float(arcs.seconds[list(path)].max()) for path in paths_of(instance, arcs)}
    assume(times and instance.repeats)
    ends = sorted({*times.values(), max(times.values()) * 1.1})
    low = ends[place % (len(ends) - 1)]
    window = Window(low=low, high=ends[place % (len(ends) - 1) + 1])
    kept = np.flatnonzero(arcs.seconds < window.high)
    relaxed = relax(instance, arcs.keep(arcs.seconds < window.high), window, math.inf)
    at = {int(arc): position for position, arc in enumerate(kept)}
    for path, longest in times.items():
        if low <= longest < window.high:
            objective = cost_of(arcs, path) + instance.repeats * longest
            assert relaxed.bound <= objective * A_LITTLE
            assert all(relaxed.through[at[arc]] <= objective * A_LITTLE for arc in path)


@settings(few, max_examples=8)
@given(late_instances(), st.sampled_from(["cbc", "highs"]))
def test_the_program_with_late_optimizers_is_exact(instance: Instance, solver: SolverName) -> None:
    """Row C12 beside all others, against all paths."""
    assume(instance.arcs.are_late)
    best = min((cost_of(instance.arcs, path) for path in paths_of(instance, instance.arcs)), default=math.inf)
    solution = solve_path(instance, instance.arcs, at_least=None, solver=solver, time_limit_seconds=30.0,
                          clock=lambda: 0.0)
    assert solution.outcome == ("infeasible" if math.isinf(best) else "optimal")
    assert solution.objective_bound <= best * A_LITTLE
    if solution.path:
        assert cost_of(instance.arcs, solution.path) == pytest.approx(best, rel=1e-6)


@some
@given(late_problems(), st.data())
def test_optimizers_that_are_surely_over_change_no_path(problem: Problem, data: st.DataObject) -> None:
    instance = instance_of(problem)
    longer = data.draw(st.floats(0, 0.1))
    arcs = replace(instance.arcs, update=instance.arcs.update + longer * (instance.arcs.first > 0))
    fewer, hidden = with_late_updates(arcs), least_hidden(arcs)
    for path in paths_of(instance, arcs):
        assert cost_of(fewer, path) == pytest.approx(cost_of(arcs, path), rel=1e-12)
        saved = np.cumsum(arcs.saves[list(path)])
        assert all(hidden[arcs.last[arc]] <= at * A_LITTLE for arc, at in zip(path, saved, strict=True))


@some
@given(late_instances())
def test_where_the_dynamic_program_is_no_longer_exact_the_proof_is(instance: Instance) -> None:
    paths = list(paths_of(instance, instance.arcs))
    best = min((path_objective(instance, instance.arcs, path) for path in paths), default=math.inf)
    path = best_path(instance)
    assert bool(path) == bool(paths) or instance.widest > 1
    if paths:
        known = path_objective(instance, instance.arcs, path) if path else math.inf
        assert known >= best / A_LITTLE
        certificate = prove(instance, known, EFFORT)
        assert certificate.closed and certificate.bound_seconds <= best * A_LITTLE
        met = path_objective(instance, instance.arcs, certificate.path) if certificate.path else known
        assert met == pytest.approx(best, rel=2e-5)


def replicas_behind_one(weight_bytes: int) -> Problem:
    """A slow device with a layer of its own, then one or two fast ones with weights, joined by a slow link."""
    graph = chain(2, weight_bytes=[0, weight_bytes], value_bytes=0, training=True, batch_size=2)
    chosen = candidate(graph, {"slow": [1.0, 8.0], "fast": [9.0, 2.0]}, 3)
    devices = cluster(
        device("a", kind="slow"), device("b", kind="fast"), device("c", kind="fast"), links=(link(bandwidth=1e5),)
    )
    return chosen, devices, Job(mode="train", batch=6, optimizer="sgd", schedule="1f1b", data_parallel=2, gap=1e-5)


@pytest.mark.parametrize(("weight_bytes", "width", "seconds"), [(1_200_000, 1, 21.1), (600_000, 2, 16.2)])
def test_a_stage_without_replicas_before_one_with(weight_bytes: int, width: int, seconds: float) -> None:
    """Three micro-batches of 3 s on a; of 6 s on b, or 3 s on b and c, which then exchange: 12 or 6 s, and 0.2 s.

    Of that 2 s, a's last backward, are hidden: 3 + 3 + 2 * 3 + (12.2 - 2) = 22.2, more than 3 + 6 + 2 * 6 + 0.1.
    """
    chosen, devices, job = replicas_behind_one(weight_bytes)
    found = plan((chosen,), devices, job)
    assert [stage.devices for stage in found.stages] == [("a",), ("b", "c")[:width]]
    assert found.proof.objective_seconds == pytest.approx(seconds)
    assert found.proof.outcome == "proven"
    assert last_update_seconds(found) == pytest.approx(0.1 if width == 1 else 6.2 - 2)
    assert found.prediction.step_seconds == pytest.approx(seconds)


def groups_for_what_is_late(first: tuple[float, float, float], last: tuple[float, float, float]) -> Problem:
    """A layer for one kind, a layer for the other, each with forward, backward and optimizer; messages take 1.5 s."""
    graph = chain(2, weight_bytes=1000, value_bytes=0, training=True, batch_size=2)
    chosen = candidate(graph, {"fast": [first[0], 1e3], "slow": [1e3, last[0]]}, 1)
    kinds = tuple(
        replace(kind, backward_seconds=(first[1], last[1]), optimizer_seconds=(first[2], last[2]))
        for kind in chosen.profile.kinds
    )
    devices = cluster(
        *(device(f"{kind}{n}", kind=kind) for kind in ("fast", "slow") for n in range(2)),
        links=(link(latency_seconds=1.5),),
    )  # fmt: skip
    chosen = replace(chosen, profile=replace(chosen.profile, kinds=kinds))
    return chosen, devices, Job(mode="train", batch=2, optimizer="sgd", tensor_parallel=2, gap=1e-5)


@pytest.mark.parametrize(
    ("first", "last", "widths", "seconds"),
    [
        # a group of two computes 9 s where one takes 6, and its optimizer 10 s where that takes 20
        ((1.0, 2.0, 0.0), (2.0, 4.0, 20.0), (1, 2), 1 + 1.5 + 4 + 5 + 10 + 1.5),
        # two compute 8 + 3.5 s where one takes 10 + 1, and the optimizer that ends last waits for the 8 s only
        ((10.0, 1.0, 0.0), (1.0, 1.0, 100.0), (2, 2), 8 + 1.5 + 3.5 + 3.5 + 50 + 1.5),
    ],
)  # fmt: skip
def test_a_group_that_computes_longer_may_be_worth_it_for_what_is_late(
    first: tuple[float, float, float], last: tuple[float, float, float], widths: tuple[int, int], seconds: float
) -> None:
    problem = groups_for_what_is_late(first, last)
    found = plan((problem[0],), problem[1], problem[2])
    assert tuple(len(stage.devices) for stage in found.stages) == widths
    assert found.proof.objective_seconds == pytest.approx(seconds) and found.proof.outcome == "proven"
    assert found.prediction.step_seconds == pytest.approx(seconds)
    assert seconds == pytest.approx(min(option.objective_seconds for option in every_option(problem)))
