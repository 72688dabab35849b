from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError
from autopart.planning import CheckError, check_workload, plan_workload
from autopart.planning.graphs.dagplan import Placement
from autopart.planning.graphs.workloadcheck import device_loads, order_of_devices
from autopart.schema.workload import Workload, WorkloadAnswer
from tests.planning.workloads import (
    chain,
    inception,
    lstm_grid,
    node,
    random_workload,
    training,
    transformer,
    workload,
)


def brute_force(job: Workload, contiguous: bool) -> float:
    """The least largest load over all assignments, recomputed from the definition; inf if nothing fits."""
    names = [f"accelerator{i}" for i in range(job.num_accelerators)] + [f"cpu{i}" for i in range(job.num_cpus)]
    best = math.inf
    for choice in itertools.product(names, repeat=len(job.nodes)):
        assignment = tuple((each.id, name) for each, name in zip(job.nodes, choice, strict=True))
        colors: dict[int, str] = {}
        if any(
            (each.color_class is not None and colors.setdefault(each.color_class, name) != name)
            or (not each.accelerator_allowed and not name.startswith("cpu"))
            for each, name in zip(job.nodes, choice, strict=True)
        ):
            continue
        loads = device_loads(job, assignment)
        fits = all(load.bytes <= job.accelerator_bytes or load.device.startswith("cpu") for load in loads)
        if fits and (not contiguous or order_of_devices(job, assignment)):
            best = min(best, max(load.load for load in loads))
    return best


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), num_nodes=st.integers(1, 6), colors=st.sampled_from((0.0, 0.4)),
    cpus=st.integers(0, 1), capacity=st.sampled_from((4.0, 7.0, 1e9)), unsupported=st.sampled_from((0.0, 0.2)),
)
def test_as_good_as_brute_force_and_infeasible_only_if_it_is(
    seed: int, num_nodes: int, colors: float, cpus: int, capacity: float, unsupported: float
) -> None:
    job = random_workload(
        seed, num_nodes, colors=colors, cpus=cpus, capacity=capacity, unsupported=unsupported, accelerators=2
    )
    for contiguous in (True, False):
        best = brute_force(job, contiguous)
        if best == math.inf:
            with pytest.raises(InfeasibleError):
                plan_workload(job, contiguous_only=contiguous, time_limit_seconds=20.0)
            continue
        answer = plan_workload(job, contiguous_only=contiguous, time_limit_seconds=20.0, gap=1e-4)
        assert answer.objective == pytest.approx(best, rel=2e-4)
        assert answer.bound <= best * (1 + 1e-9)
        assert answer.outcome == "proven"


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 10**6), num_nodes=st.integers(5, 14))
def test_more_devices_and_fewer_rules_never_hurt(seed: int, num_nodes: int) -> None:
    job = random_workload(seed, num_nodes, colors=0.2, accelerators=2, cpus=0)
    contiguous = plan_workload(job).objective
    assert plan_workload(replace(job, num_accelerators=3)).objective <= contiguous
    assert plan_workload(replace(job, num_cpus=1)).objective <= contiguous
    assert plan_workload(job, contiguous_only=False, time_limit_seconds=1.0).objective <= contiguous


def by_ticks(job: Workload, limit: int, contiguous: bool) -> WorkloadAnswer:
    """Every look at the clock takes a second, and the integer program is left out, for it would take real ones."""
    ticks = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopart.planning.graphs.dagfree.MOST_VARIABLES", 0)
        patch.setattr("autopart.planning.graphs.dagplan.MOST_IDEALS", 60)
        return plan_workload(
            job, contiguous_only=contiguous, time_limit_seconds=limit, clock=lambda: float(next(ticks))
        )


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 10**6), num_nodes=st.integers(4, 16), limit=st.sampled_from((4, 30, 200)),
    colors=st.sampled_from((0.0, 0.3)), cpus=st.integers(0, 1),
)
def test_without_contiguity_it_is_never_worse(seed: int, num_nodes: int, limit: int, colors: float, cpus: int) -> None:
    job = random_workload(seed, num_nodes, density=0.15, colors=colors, accelerators=3, cpus=cpus)
    free, contiguous = (by_ticks(job, limit, each) for each in (False, True))
    assert free.objective <= contiguous.objective
    assert free.bound <= contiguous.objective


def test_it_starts_from_a_much_stronger_contiguous_search() -> None:
    """Parallel chains in little time: a search by single moves alone is worse by more than 1 %."""
    job, limit = lstm_grid(4, 40, accelerators=4, cpus=0), 60
    free, contiguous = (by_ticks(job, limit, each) for each in (False, True))
    assert free.objective <= contiguous.objective
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopart.planning.graphs.dagfree._start", lambda *_: ())
        patch.setattr("autopart.planning.graphs.workload.contiguous", lambda *_, **__: NOTHING)
        assert by_ticks(job, limit, False).objective > 1.01 * contiguous.objective


NOTHING = Placement(parts=(), objective=math.inf, bound=0.0, bound_name="", solver="")


@pytest.mark.parametrize("job", [
    chain(40, accelerators=4), inception(4, accelerators=4), training(inception(4, accelerators=3)),
    training(transformer(3, accelerators=3)), lstm_grid(2, 12, accelerators=3, cpus=0),
], ids=["chain", "inception", "inception-training", "transformer-training", "lstm"])
def test_known_shapes_are_proven_by_dynamic_program(job: Workload) -> None:
    answer = plan_workload(job)
    assert answer.outcome == "proven" and answer.gap == 0
    assert "all" in answer.bound_name and "ideals" in answer.bound_name
    again = plan_workload(job)
    assert again.assignment == answer.assignment


def test_colour_classes_stay_together_in_training() -> None:
    answer = plan_workload(training(chain(12, accelerators=3, cpus=0)))
    place = dict(answer.assignment)
    assert all(place[number] == place[number + 12] for number in range(12))


def test_a_backward_class_without_forward_nodes_lies_between_its_neighbours() -> None:
    """0 -> 1 -> 2 forward; the gradient goes 12 -> 11 -> 10, and 11 has no forward mate."""
    forward = [node(i, 1.0, color=i if i != 1 else 7) for i in range(3)]
    backward = [node(i + 10, 2.0, color=i if i != 1 else 11, backward=True) for i in range(3)]
    pairs = [(0, 1, 0.1), (1, 2, 0.1), (2, 12, 0.1), (12, 11, 0.1), (11, 10, 0.1)]
    job = workload([*forward, *backward], pairs, accelerators=3, cpus=0)
    answer = plan_workload(job)
    place = dict(answer.assignment)
    assert place[10] == place[0] and place[12] == place[2]
    assert answer.objective == pytest.approx(brute_force(job, True))


def test_a_cpu_pays_no_transfers() -> None:
    job = workload([node(0, 5.0, cpu=1.0), node(1, 5.0)], [(0, 1, 2.0)], accelerators=1)
    answer = plan_workload(job)
    assert dict(answer.assignment) == {0: "cpu0", 1: "accelerator0"}
    assert {load.device: load.load for load in answer.loads} == {"accelerator0": 7.0, "cpu0": 1.0}


def test_what_no_accelerator_runs_goes_to_the_cpu() -> None:
    job = workload([node(0, 1.0), node(1, 0.0, cpu=50.0, accelerator_allowed=False)], [(0, 1, 1.0)])
    assert dict(plan_workload(job).assignment)[1] == "cpu0"
    with pytest.raises(InfeasibleError, match="node 1 is not supported on accelerators and there is no CPU"):
        plan_workload(replace(job, num_cpus=0))


def test_infeasible_says_which_memory_is_short_by_how_much() -> None:
    job = workload([node(i, 1.0, bytes=3e9) for i in range(4)], [(0, 1, 0.0)], cpus=0, capacity=5e9)
    with pytest.raises(InfeasibleError, match=r"12.0 GB, 2 accel.* have 10.0 GB: short by 2.00 GB.*maxFPGAs to 3"):
        plan_workload(job)
    with pytest.raises(InfeasibleError, match=r"needs of one is 6.00 GB: short by 1.50 GB"):
        plan_workload(replace(job, accelerator_bytes=4.5e9, num_accelerators=3))
    with pytest.raises(InfeasibleError, match=r"node 0 takes 3.00 GB, an accelerator has 2.00 GB: short by 1.00 GB"):
        plan_workload(replace(job, accelerator_bytes=2e9, num_accelerators=9))


def test_time_limit_leaves_a_bound_and_a_gap() -> None:
    job = lstm_grid(5, 9, accelerators=4, cpus=0)
    answer = plan_workload(job)
    assert answer.bound_name == "carving of the graph"  # 10^5 ideals are too many
    assert 0 < answer.bound <= answer.objective
    assert answer.gap == pytest.approx(answer.objective / answer.bound - 1)


def test_out_of_time_at_once_is_still_an_answer() -> None:
    ticks = itertools.count()
    answer = plan_workload(inception(4, accelerators=3), time_limit_seconds=1e-9, clock=lambda: float(next(ticks)))
    assert answer.outcome == "feasible" and answer.bound <= answer.objective


def test_the_checker_does_not_believe() -> None:
    job = training(chain(6, accelerators=3, cpus=1))
    answer = plan_workload(job)
    check_workload(job, answer)
    swapped = {"accelerator0": "accelerator1", "accelerator1": "accelerator0"}
    first, *rest = answer.assignment
    lies = [
        (replace(answer, objective=answer.objective * 0.9), "largest load"),
        (replace(answer, bound=answer.objective * 1.1), "above the objective"),
        (replace(answer, assignment=tuple(rest)), "every node"),
        (replace(answer, assignment=((first[0], "accelerator9"), *rest)), "no device"),
        (replace(answer, assignment=((first[0], swapped.get(first[1], "accelerator0")), *rest)), "colour class"),
    ]
    for lie, what in lies:
        with pytest.raises(CheckError, match=what):
            check_workload(job, lie)
    with pytest.raises(CheckError, match="bytes"):
        check_workload(replace(job, accelerator_bytes=1.0), answer)


def test_the_checker_sees_what_is_not_contiguous() -> None:
    job = workload([node(i, 1.0) for i in range(3)], [(0, 1, 0.0), (1, 2, 0.0)], cpus=0)
    answer = plan_workload(job)
    there_and_back = ((0, "accelerator0"), (1, "accelerator1"), (2, "accelerator0"))
    loads = device_loads(job, there_and_back)
    with pytest.raises(CheckError, match="not contiguous"):
        check_workload(job, replace(answer, assignment=there_and_back, loads=loads, objective=2.0))
    assert order_of_devices(job, there_and_back) is None
