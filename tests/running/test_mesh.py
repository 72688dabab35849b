from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import RunError
from autopart.running.mesh import (
    check_groups,
    process_device,
    process_devices,
    processes,
    routes,
    samples_per_replica,
    seats,
)
from autopart.running.stages import check_alone
from autopart.running.tied import Exchange, Sharing, exchanges
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.group_ranks import NUM_MICROBATCHES, SHARE, Case, make_group_plan
from tests.running.groupmodels import MODELS, tokens_of

PROGRAM = trace(MODELS["blocks"](), (tokens_of(SHARE, 0),), training=True)


def plan_of(*groups: tuple[int, int]) -> Plan:
    return make_group_plan(PROGRAM, Case(groups, "1f1b", "blocks"))


def test_processes_are_numbered_along_the_rows_of_every_group() -> None:
    plan = plan_of((2, 1), (2, 2))
    assert process_devices(plan) == tuple(f"cpu:{number}" for number in range(6))
    assert processes(plan) == ((0, 1), (2, 3, 4, 5))
    assert [(seat.rank, seat.data, seat.tensor) for seat in seats(plan)] == [
        (0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
    ]  # fmt: skip
    assert samples_per_replica(plan) == SHARE == plan.job.batch // NUM_MICROBATCHES // 2


widths = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=3)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2]), widths)
def test_every_process_gets_every_value_and_gradient_once(num_data: int, num_tensor: list[int]) -> None:
    plan = plan_of(*((num_data, each) for each in num_tensor))
    everyone = seats(plan)
    found = [routes(plan, seat.process, seat.rank) for seat in everyone]
    for one, other in itertools.pairwise(processes(plan)):
        for target in other:
            assert [source for source in one if target in found[source].to_next] == [found[target].from_previous]
            assert everyone[found[target].from_previous].data == everyone[target].data, "samples stay in a replica"
        for target in one:
            assert [source for source in other if target in found[source].to_previous] == [found[target].from_next]


def test_one_process_alone_is_told_how_many_it_takes() -> None:
    with pytest.raises(RunError, match=r"stage 1 is run by 2 devices together.*torchrun --nproc-per-node 3"):
        check_alone(plan_of((1, 1), (1, 2)))
    check_alone(plan_of((1, 1), (1, 1)))


def test_a_device_that_is_not_here_is_named() -> None:
    plan = plan_of((1, 2))
    absent = dataclasses.replace(plan.cluster.devices[1], backend="absent", torch_device=None)
    cluster = dataclasses.replace(plan.cluster, devices=(plan.cluster.devices[0], absent))
    with pytest.raises(RunError, match="cpu:1 is not in this machine"):
        process_device(dataclasses.replace(plan, cluster=cluster), 1)


def test_tied_weights_are_exchanged_part_with_part() -> None:
    everyone = seats(plan_of((2, 2), (2, 2)))
    shared = (Sharing(stages=(0, 1), names=("embed.weight", "scale")),)
    assert exchanges(shared, everyone, {"embed.weight"}) == (
        Exchange(processes=tuple(range(8)), ranks=(0,) * 4 + (1,) * 4, names=("scale",)),
        Exchange(processes=(0, 2, 4, 6), ranks=(0, 0, 1, 1), names=("embed.weight",)),
        Exchange(processes=(1, 3, 5, 7), ranks=(0, 0, 1, 1), names=("embed.weight",)),
    )
    assert exchanges(shared, everyone, {"embed.weight"})[0].copies_of(5) == 4


def test_recomputation_is_refused_rather_than_left_out() -> None:
    plan = plan_of((1, 1), (1, 1))
    stages = (plan.stages[0], dataclasses.replace(plan.stages[1], recompute=True))
    for check in (check_alone, functools.partial(check_groups, training=True)):
        with pytest.raises(RunError, match=r"stage 1 is planned to run its forward again.*--recompute never"):
            check(dataclasses.replace(plan, stages=stages))
