from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from autopart.planning.orders import ORDERS, Action, most_in_flight
from autopart.planning.simulate import StageTimes, run_schedule
from autopart.schema.job import ScheduleName

DEEDS = {"F": "forward", "B": "backward", "I": "input", "W": "weight"}

LOOPED: dict[ScheduleName, Any] = {
    "interleaved": torch_schedules.ScheduleInterleaved1F1B,
    "zero-bubble": torch_schedules.ScheduleInterleavedZeroBubble,
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


@pytest.mark.parametrize("schedule", ["interleaved", "zero-bubble"])
@pytest.mark.parametrize(
    ("num_ranks", "num_local", "num"), [(2, 1, 4), (2, 2, 2), (2, 2, 8), (4, 2, 4), (4, 2, 10), (4, 3, 3), (3, 1, 6)]
)
def test_looped_orders_are_torchs(schedule: ScheduleName, num_ranks: int, num_local: int, num: int) -> None:
    rounds = max(1, num // num_ranks)
    owner = SimpleNamespace(
        n_local_stages=num_local, pp_group_size=num_ranks, _n_microbatches=num, microbatches_per_round=num // rounds
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
    timeline = run_schedule(times, schedule, 6, training=True, stages_per_device=local)
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


def test_a_round_that_does_not_divide_is_refused() -> None:
    times = (StageTimes(forward_seconds=1.0, backward_seconds=1.0, receive_seconds=0.0, return_seconds=0.0,
                        optimizer_seconds=0.0),) * 4
    with pytest.raises(ValueError, match="multiple of 2"):
        run_schedule(times, "interleaved", 5, training=True, stages_per_device=2)
