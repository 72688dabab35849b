from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules as torch_schedules

from autopart.orders import ORDERS, Action, in_flight, most_in_flight, orders_of, torch_name
from autopart.planning.simulating.simulate import StageTimes, run_schedule
from autopart.schema.job import ScheduleName

DEEDS = {"F": "forward", "B": "backward", "I": "input", "W": "weight"}

LOOPED: dict[ScheduleName, Any] = {
    "interleaved": torch_schedules.ScheduleInterleaved1F1B,
    "zero-bubble": torch_schedules.ScheduleInterleavedZeroBubble,
    "looped-bfs": torch_schedules.ScheduleLoopedBFS,
}
SINGLE: dict[ScheduleName, Any] = {"gpipe": torch_schedules.ScheduleGPipe, "1f1b": torch_schedules.Schedule1F1B}


def actions(order: list[Any]) -> list[Action]:
    """Torch's computations, without waiting and reducing."""
    return [
        Action(DEEDS[each.computation_type.value], each.stage_index, each.microbatch_index)  # type: ignore[arg-type]
        for each in order
        if each is not None and each.computation_type.value in DEEDS
    ]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("num_ranks", "num"), [(1, 1), (2, 2), (2, 8), (4, 4), (4, 9)])
def test_single_stage_orders_are_torchs(schedule: ScheduleName, num_ranks: int, num: int) -> None:
    owner = SimpleNamespace(_num_stages=num_ranks, _n_microbatches=num)
    theirs = SINGLE[schedule]._get_pipeline_order(owner)
    for rank in range(num_ranks):
        ours, drawn = ORDERS[schedule](rank, num_ranks, 1, num), actions(theirs[rank])
        if schedule == "1f1b" and rank == num_ranks - 1:
            # torch draws the last rank's forwards from micro-batch 1 on; what it runs starts at 0
            drawn = [Action(a.deed, a.stage, a.microbatch - (a.deed == "forward")) for a in drawn]
        assert ours == drawn


@pytest.mark.parametrize("schedule", ["interleaved", "zero-bubble", "looped-bfs"])
@pytest.mark.parametrize(
    ("num_ranks", "num_local", "num"), [(2, 1, 4), (2, 2, 2), (2, 2, 8), (4, 2, 4), (4, 2, 10), (4, 3, 3), (3, 1, 6)]
)
def test_looped_orders_are_torchs(schedule: ScheduleName, num_ranks: int, num_local: int, num: int) -> None:
    rounds = max(1, num // num_ranks)
    owner = SimpleNamespace(
        n_local_stages=num_local, pp_group_size=num_ranks, _n_microbatches=num, microbatches_per_round=num // rounds,
        _stages=[None] * num_local,
    )
    for rank in range(num_ranks):
        theirs = LOOPED[schedule]._calculate_single_rank_operations(owner, rank)
        assert ORDERS[schedule](rank, num_ranks, num_local, num) == actions(theirs)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble"])
def test_the_simulation_computes_in_that_order(schedule: ScheduleName) -> None:
    local = 2 if schedule == "interleaved" else 1
    times = tuple(
        StageTimes(forward_seconds=1.0, backward_seconds=2.0, receive_seconds=0.1, return_seconds=0.1,
                   optimizer_seconds=0.0)
        for _ in range(3 * local)
    )
    timeline = run_schedule(times, schedule, 6, training=True, ranks=tuple(range(3)) * local)
    for rank in range(3):
        own = [e for e in timeline.events if e.stage % 3 == rank and e.kind in ("forward", "backward", "weight")]
        own.sort(key=lambda event: (event.start_seconds, event.end_seconds))
        done = [(e.kind, e.stage, e.microbatch) for e in own]
        order = [
            ("backward" if a.deed == "input" else a.deed, a.stage, a.microbatch)
            for a in ORDERS[schedule](rank, 3, local, 6)
        ]
        # the first stage's input halves take no time, so they may be drawn before or after what starts with them
        assert sorted(done) == sorted(order)
        if rank or schedule != "zero-bubble":
            assert done == order


def test_zero_bubble_fills_the_bubble_and_keeps_more() -> None:
    times = tuple(
        StageTimes(forward_seconds=1.0, backward_seconds=2.0, receive_seconds=0.0, return_seconds=0.0,
                   optimizer_seconds=0.0)
        for _ in range(4)
    )
    steps = {name: run_schedule(times, name, 8, training=True).step_seconds for name in ("1f1b", "zero-bubble")}
    assert steps["1f1b"] == 33
    assert steps["zero-bubble"] < steps["1f1b"]
    kept = [max(most_in_flight(ORDERS["zero-bubble"](rank, 4, 1, 8)).values()) for rank in range(4)]
    assert kept == [4, 4, 4, 4]


@pytest.mark.parametrize(("num_ranks", "num"), [(1, 2), (2, 2), (2, 8), (3, 4), (4, 12)])
def test_zbv_is_torchs(num_ranks: int, num: int) -> None:
    owner: Any = SimpleNamespace(pp_group_size=num_ranks, num_stages=2 * num_ranks, _n_microbatches=num)
    owners = (*range(num_ranks), *reversed(range(num_ranks)))
    ours = orders_of("zero-bubble", owners, num)
    if num_ranks > 1:
        assert torch_name("zero-bubble", owners, num) == "ScheduleZBVZeroBubble"
        for rank in range(num_ranks):
            theirs = torch_schedules.ScheduleZBVZeroBubble._calculate_single_rank_operations(owner, rank)
            assert list(ours[rank]) == actions(theirs)


def test_which_of_torchs_schedules_runs_it() -> None:
    assert torch_name("1f1b", (0, 1, 2), 4) == "Schedule1F1B"
    assert torch_name("1f1b", (0, 1, 0, 1), 4) is None
    assert torch_name("interleaved", (0, 1, 0, 1), 4) == "ScheduleInterleaved1F1B"
    assert torch_name("interleaved", (0, 1, 0, 1), 5) is None  # two rounds do not divide five micro-batches
    assert torch_name("interleaved", (0, 0, 1), 4) is None


placements = st.lists(st.integers(0, 3), min_size=1, max_size=7).map(
    lambda ranks: tuple(list(dict.fromkeys(ranks)).index(rank) for rank in ranks)
)


@settings(deadline=None)
@given(placements, st.integers(1, 6), st.sampled_from(sorted(ORDERS)))
def test_any_placement_is_run_to_the_end(owners: tuple[int, ...], num: int, schedule: ScheduleName) -> None:
    """Every rank computes all of its stages' micro-batches once, and the simulation does not deadlock."""
    orders = orders_of(schedule, owners, num)
    deeds = ("forward", "input", "weight") if schedule == "zero-bubble" else ("forward", "backward")
    for rank, order in enumerate(orders):
        mine = [stage for stage, owner in enumerate(owners) if owner == rank]
        expected = [(deed, stage, m) for deed in deeds for stage in mine for m in range(num)]
        assert sorted((a.deed, a.stage, a.microbatch) for a in order) == sorted(expected)
    times = tuple(
        StageTimes(forward_seconds=1.0, backward_seconds=2.0, receive_seconds=0.1, return_seconds=0.1,
                   optimizer_seconds=0.0) for _ in owners
    )
    busy = max(3.0 * num * owners.count(rank) for rank in set(owners))
    for training in (True, False):
        step = run_schedule(times, schedule, num, training=training, ranks=owners).step_seconds
        assert step >= (busy if training else busy / 3) - 1e-9
    if schedule == "gpipe":
        assert set(in_flight(schedule, owners, num)) == {num}
