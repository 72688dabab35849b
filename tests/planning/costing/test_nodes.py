from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopart.errors import InfeasibleError
from autopart.planning import plan
from autopart.planning.costing.groups import group_devices, link_between
from autopart.planning.costing.nodes import devices_along, has_many_groups, homes, merged_nodes, whole_nodes
from autopart.planning.searching import optimum
from autopart.planning.searching.arcs import build_instance
from autopart.planning.searching.chain import best_path, path_objective
from autopart.planning.searching.options import evaluate, layout_of, schedules
from autopart.planning.searching.windows import prove_by_windows
from autopart.planning.solving.effort import Effort
from autopart.schema.device import Cluster
from autopart.schema.job import Job, Objective
from autopart.schema.problem import Candidate
from tests.planning.problems import (
    all_options,
    best_by_brute_force,
    best_wide_by_brute_force,
    candidate,
    chain,
    device,
    link,
    problems,
    wide_problems,
)

Problem = tuple[Candidate, Cluster, Job]


def racks(num_nodes: int, per_node: int, *, kinds: tuple[str, ...] = ("fast", "slow")) -> Cluster:
    """Nodes of devices of one kind each, quick inside."""
    names = [f"{kind}{number}" for kind in kinds for number in range(num_nodes)]
    devices = [device(f"{n}.{i}", kind=n.rstrip("0123456789"), node=n) for n in names for i in range(per_node)]
    inside = tuple(link(latency_seconds=1e-6, bandwidth=1e9, ends=(name, name)) for name in names)
    return Cluster(devices=tuple(devices), links=(*inside, link(latency_seconds=1e-5, bandwidth=1e7)))


def test_nodes_of_a_kind_become_one_group_with_their_best_link() -> None:
    real = racks(3, 2)
    merged = merged_nodes(real, frozenset())
    assert [group.size for group in group_devices(real)] == [2] * 6
    assert [group.size for group in group_devices(merged)] == [6, 6]
    for one in real.devices:
        for other in real.devices:
            if one is not other:
                there = merged.link(merged.device(one.name), merged.device(other.name))
                assert there.seconds(1000) <= real.link(one, other).seconds(1000)
    assert merged_nodes(merged, frozenset()) is merged


def test_devices_of_wishes_stay_alone() -> None:
    groups = group_devices(merged_nodes(racks(2, 2), frozenset({"fast0.0"})), frozenset({"fast0.0"}))
    assert sorted(group.size for group in groups) == [1, 3, 4]


def test_few_groups_are_told_apart() -> None:
    assert not has_many_groups(racks(2, 2), frozenset())
    assert has_many_groups(racks(10, 2), frozenset())


def test_stages_fill_one_node_after_the_other() -> None:
    real = racks(3, 2)
    groups = group_devices(merged_nodes(real, frozenset()))
    places = devices_along(real, groups, [(0, 1)] * 5 + [(1, 1)] * 2)
    names = [place[0].node for place in places]
    assert names[0] == names[1] and names[2] == names[3] and names[5] == names[6] and len(set(names)) == 4
    assert devices_along(real, groups, [(0, 2)] * 3) and not devices_along(real, groups, [(0, 2)] * 4)
    assert devices_along(real, groups, [(0, 1), (0, 2), (0, 1), (0, 2)]), "the wide ones first, where it has to be"


def test_whole_nodes_leave_no_remainder() -> None:
    assert [group.size for group in group_devices(whole_nodes(racks(2, 7), frozenset(), 4))] == [4] * 4
    assert [group.size for group in group_devices(whole_nodes(racks(2, 3), frozenset(), 4))] == [3] * 4


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(max_layers=5), objective=st.sampled_from(["throughput", "latency", "memory", "devices"]))
def test_with_nodes_merged_no_plan_is_below_the_bound(problem: Problem, objective: Objective) -> None:
    """As if the groups were too many, against every plan of the real cluster."""
    chosen, devices, job = problem
    job = replace(job, objective=objective, schedule=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimum, "has_many_groups", lambda cluster, apart: True)
        try:
            found = plan((chosen,), devices, job)  # has passed check
        except InfeasibleError as error:
            fits = best_by_brute_force(chosen, devices, job) is not None
            assert not fits or "no plan was found" in str(error)
            return
    best = best_by_brute_force(chosen, devices, job)
    assert best is not None and found.proof.bound_seconds <= found.proof.objective_seconds * (1 + 1e-9)
    if objective in ("throughput", "latency"):
        assert found.proof.bound_seconds <= best.objective_seconds * (1 + 1e-9)
    elif found.proof.least is not None and objective == "devices":
        fitting = [option for option in all_options(chosen, devices, job) if not option.misfit]
        assert found.proof.least.bound <= min(len(option.layout.used) for option in fitting)


@st.composite
def on_two_nodes(draw: st.DrawFn) -> Problem:
    """A chain for stages of one or two devices, which stand on two nodes that a slow link joins."""
    chosen, devices, job = draw(wide_problems())
    nodes = draw(st.lists(st.sampled_from("ab"), min_size=len(devices.devices), max_size=len(devices.devices)))
    placed = tuple(replace(each, node=node) for each, node in zip(devices.devices, nodes, strict=True))
    inside = tuple(link(latency_seconds=1e-5, bandwidth=1e8, ends=(name, name)) for name in "ab")
    return chosen, Cluster(devices=placed, links=(*inside, link(latency_seconds=1e-3, bandwidth=1e6))), job


@settings(deadline=None, max_examples=12)
@given(problem=on_two_nodes())
def test_windows_over_merged_nodes_hold_for_the_real_ones(problem: Problem) -> None:
    chosen, devices, job = problem
    schedule = schedules(job)[0]
    best = best_wide_by_brute_force(chosen, devices, replace(job, schedule=schedule))
    instance = build_instance(chosen, merged_nodes(devices, frozenset()), job, schedule, real=devices)
    effort = Effort(solver="auto", gap=1e-4, deadline=1.0, clock=lambda: 0.0)
    found = prove_by_windows(instance, math.inf, effort)
    assert best is None or found.bound_seconds <= best.objective_seconds * (1 + 1e-9)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=on_two_nodes())
def test_with_nodes_merged_no_plan_of_wide_stages_is_below_the_bound(problem: Problem) -> None:
    chosen, devices, job = problem
    best = best_wide_by_brute_force(chosen, devices, job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimum, "has_many_groups", lambda cluster, apart: True)
        try:
            found = plan((chosen,), devices, job)
        except InfeasibleError as error:
            assert best is None or "no plan was found" in str(error)
            return
    assert best is not None and found.proof.bound_seconds <= best.objective_seconds * (1 + 1e-9)


def test_a_stage_that_fills_its_node_is_reached_from_another() -> None:
    real = racks(3, 2)
    merged = merged_nodes(real, frozenset())
    stand = homes(real, group_devices(merged), frozenset())
    assert [home.widest for home in stand] == [2, 2]
    assert all(home.beyond is not None and home.beyond.bandwidth_bytes_per_second == 1e7 for home in stand)
    graph = chain(6, value_bytes=10**6, training=True, batch_size=2)
    chosen = candidate(graph, {"fast": [1e-2] * 6, "slow": [9e-1] * 6}, 4)
    job = Job(mode="train", batch=8, optimizer="sgd", data_parallel=4)
    arcs = build_instance(chosen, merged, job, "gpipe", real=real).arcs
    on_node = {1: arcs.room == 0, 2: arcs.before == 0}
    received = {  # one stage of a layer, less its computing: 30 ms of forward and backward, shared by the replicas
        width: float(arcs.weight[some & (arcs.width == width) & (arcs.group == 0)].min()) - 0.03 / width
        for width, some in on_node.items()
    }
    assert sorted(set(arcs.width.tolist())) == [1, 2], "no stage is wider than a node"
    assert received[1] == pytest.approx(2 * 1e-3, rel=0.1) and received[2] == pytest.approx(2 * 1e-1, rel=0.1)


@pytest.mark.parametrize("objective", ["throughput", "latency", "cost", "memory", "devices"])
def test_many_nodes_are_planned_for_every_objective(objective: Objective) -> None:
    chosen = candidate(chain(12, value_bytes=100_000), {"fast": [1e-2] * 12, "slow": [3e-2] * 12}, 8)
    rents = {"fast": 2.0, "slow": 0.5}
    real = racks(8, 2)
    real = replace(real, devices=tuple(replace(each, rent_usd_per_hour=rents[each.kind]) for each in real.devices))
    assert has_many_groups(real, frozenset())
    found = plan((chosen,), real, Job(batch=8, objective=objective, gap=0.02, time_limit_seconds=20.0))
    assert math.isfinite(found.proof.gap) and found.proof.bound_seconds > 0
    inside = [
        link_between(real, real.device(t.devices[0]), real.device(n.devices[0]))
        for t, n in zip(found.stages, found.stages[1:], strict=False)
    ]
    assert not inside or any(each is not None and each.latency_seconds == 1e-6 for each in inside)


def test_no_path_stays_longer_on_a_node_than_there_is_room() -> None:
    """Ten stages on nodes of four: two of them at least are reached from another node, wherever the path has them."""
    real = racks(3, 4, kinds=("fast",))
    chosen = candidate(chain(10, value_bytes=100_000), {"fast": [1e-2] * 10}, 8)
    instance = build_instance(chosen, merged_nodes(real, frozenset()), Job(batch=8, stages=10), "gpipe", real=real)
    assert instance.num_labels > len(set(instance.link_classes))
    path = best_path(instance)
    stays = [int(instance.arcs.room[arc]) == 0 for arc in path]
    assert len(stays) == 10 and sum(not each for each in stays) == 3
    runs = "".join("s" if each else "e" for each in stays).split("e")[1:]
    assert max(len(run) for run in runs) == 3
    layout = layout_of(instance, path, "gpipe", real)
    assert layout is not None
    nodes = [real.device(name).node for name in layout.devices]
    assert [one == other for one, other in pairwise(nodes)] == stays[1:], "stages are where the path has them"
    exact = evaluate(chosen, real, Job(batch=8), layout).objective_seconds
    assert path_objective(instance, instance.arcs, path) == pytest.approx(exact)


def test_runs_go_into_nodes_that_are_in_part_taken() -> None:
    real = racks(2, 4, kinds=("fast",))
    groups = group_devices(merged_nodes(real, frozenset()))
    stays = [False, False, True, True, False, True]
    places = devices_along(real, groups, [(0, 1), (0, 1), (0, 1), (0, 1), (0, 2), (0, 1)], stays)
    nodes = [place[0].node for place in places]
    assert nodes[1] == nodes[2] == nodes[3] and nodes[4] == nodes[5] and len(set(nodes)) == 2
    assert len({device.name for place in places for device in place}) == 7


def test_the_best_of_no_links_is_none() -> None:
    apart = replace(racks(2, 1), links=())
    assert merged_nodes(apart, frozenset()).links == ()
