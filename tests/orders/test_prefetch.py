from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.orders import Action, orders_of, with_messages
from autopart.schema.job import ScheduleName

SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble")


PLACEMENTS = ((0,), (0, 1), (0, 1, 2, 3), (0, 1, 0, 1), (0, 1, 1, 0), (0, 0, 1))


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), st.sampled_from(PLACEMENTS), st.integers(1, 9), st.integers(0, 40))
def test_everything_sent_is_received_once_and_before_it_is_needed(
    schedule: ScheduleName, owners: tuple[int, ...], num_microbatches: int, ahead: int
) -> None:
    orders = orders_of(schedule, owners, num_microbatches)
    steps = [with_messages(order, owners, ahead) for order in orders]
    for order, mine in zip(orders, steps, strict=True):
        assert tuple(step for step in mine if isinstance(step, Action)) == order
    for stage in range(len(owners) - 1):
        crosses = owners[stage] != owners[stage + 1]
        for way, sender, receiver in (("forward", stage, stage + 1), ("backward", stage + 1, stage)):
            sent, received = (
                sorted(step[3] for step in steps[owners[end]]
                       if not isinstance(step, Action) and step[:3] == (kind, way, end))
                for kind, end in (("send", sender), ("recv", receiver))
            )
            assert sent == received == (list(range(num_microbatches)) if crosses else [])
    for mine in steps:
        for place, step in enumerate(mine):
            if isinstance(step, Action):
                way = "forward" if step.deed == "forward" else "backward"
                assert ("recv", way, step.stage, step.microbatch) not in mine[place:]


def test_a_receive_is_posted_so_many_computations_early() -> None:
    order = orders_of("gpipe", (0, 1), 4)[1]
    steps = with_messages(order, (0, 1), 2)
    assert [step[3] for step in steps[:3] if not isinstance(step, Action)] == [0, 1, 2]
    assert steps[3:5] == (Action("forward", 1, 0), ("recv", "forward", 1, 3))
