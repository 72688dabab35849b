from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.errors import RunError
from autopart.running.mesh import (
    Peer,
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


groups = st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3])), min_size=2, max_size=3)


@settings(deadline=None, max_examples=20)
@given(groups)
def test_every_process_gets_each_of_its_samples_and_gradients_once(found: list[tuple[int, int]]) -> None:
    plan = plan_of(*found)
    num_samples = 12
    plan = dataclasses.replace(plan, job=dataclasses.replace(plan.job, batch=num_samples * NUM_MICROBATCHES))
    for one, other in itertools.pairwise(processes(plan)):
        exchanged(plan, one, other, "to_next", "from_previous", num_samples)
        exchanged(plan, other, one, "to_previous", "from_next", num_samples)


def exchanged(
    plan: Plan, senders: tuple[int, ...], receivers: tuple[int, ...], to: str, back: str, num_samples: int
) -> None:
    """What receivers expect is what senders send, in their order; of every sample one, of the rest one."""
    everyone = seats(plan)
    found = {process: routes(plan, process, everyone[process].rank) for process in (*senders, *receivers)}

    def samples(process: int, peer: Peer) -> range:
        first = everyone[process].data * num_samples // everyone[process].num_data
        return range(first + peer.start, first + peer.stop)

    for receiver in receivers:
        expected = [(peer.process, samples(receiver, peer), peer.carries_rest)
                    for peer in getattr(found[receiver], back)]  # fmt: skip
        sent = [(sender, samples(sender, peer), peer.carries_rest) for sender in senders
                for peer in getattr(found[sender], to) if peer.process == receiver]  # fmt: skip
        assert expected == sent
        first = everyone[receiver].data * num_samples // everyone[receiver].num_data
        share = num_samples // everyone[receiver].num_data
        assert [number for _, some, _ in sent for number in some] == list(range(first, first + share))
        assert [rest for *_, rest in sent].count(True) == 1


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
