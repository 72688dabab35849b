from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.orders import Action, orders_of
from autopart.running.prefetch import can_prefetch, with_messages
from autopart.schema.job import ScheduleName

SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble")


@settings(deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 4), st.integers(1, 9), st.integers(0, 5))
def test_messages_arrive_in_the_order_they_are_sent_and_before_they_are_needed(
    schedule: ScheduleName, num_stages: int, num_microbatches: int, ahead: int
) -> None:
    orders = orders_of(schedule, tuple(range(num_stages)), num_microbatches)
    steps = [with_messages(order, num_stages, ahead) for order in orders]
    for order, mine in zip(orders, steps, strict=True):
        assert tuple(step for step in mine if isinstance(step, Action)) == order
    for stage in range(num_stages - 1):
        for way, sender, receiver in (("forward", stage, stage + 1), ("backward", stage + 1, stage)):
            sent, received = (
                [step[3] for step in steps[rank] if not isinstance(step, Action) and step[:2] == (kind, way)]
                for kind, rank in (("send", sender), ("recv", receiver))
            )
            assert sent == received and sorted(sent) == list(range(num_microbatches))
    for mine in steps:
        for place, step in enumerate(mine):
            if isinstance(step, Action):
                way = "forward" if step.deed == "forward" else "backward"
                assert ("recv", way, step.stage, step.microbatch) not in mine[place:]


def test_devices_with_several_stages_receive_when_they_need_to() -> None:
    assert can_prefetch((0, 1, 2)) and can_prefetch((0,))
    assert not can_prefetch((0, 1, 0)) and not can_prefetch((0, 0, 1))
