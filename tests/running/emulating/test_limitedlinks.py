from __future__ import annotations

from pathlib import Path

import pytest

from autopart.running.emulating.limitedlinks import LimitedLinks, SlowCut

CUT = SlowCut(link=0, forward_seconds=3.0, backward_seconds=2.0)


class FakeTime:
    def __init__(self) -> None:
        self.now_seconds = 100.0

    def clock(self) -> float:
        return self.now_seconds

    def sleep(self, seconds: float) -> None:
        self.now_seconds += seconds


class Ends:
    """The ranks of a pipeline, all in one process, on one clock that only sleeping and ``pass_time`` move."""

    def __init__(
        self, path: Path, *cuts: SlowCut | None, num_ranks: int = 2, num_microbatches: int = 4, waits: bool = False,
        both_ways: bool = False,
    ) -> None:
        self.time = FakeTime()
        self.ranks = [
            LimitedLinks(path / "links", cuts, num_microbatches, both_ways=both_ways, waits_for_sends=waits,
                         clock=self.time.clock, sleep=self.time.sleep)
            for _ in range(num_ranks)
        ]  # fmt: skip

    def pass_time(self, seconds: float) -> None:
        self.time.now_seconds += seconds

    @property
    def seconds(self) -> float:
        return round(self.time.now_seconds - 100.0, 9)


def test_a_message_starts_when_both_ends_have_posted_it(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT)
    sender, receiver = ends.ranks
    sender.post("forward", 0, 0, sends=True)
    ends.pass_time(5.0)
    receiver.post("forward", 0, 0, sends=False)
    receiver.wait("forward", 0, 0)
    assert ends.seconds == 8.0


def test_what_came_while_the_receiver_computed_is_not_waited_for(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT)
    sender, receiver = ends.ranks
    receiver.post("forward", 0, 0, sends=False)
    sender.post("forward", 0, 0, sends=True)
    ends.pass_time(4.0)
    receiver.wait("forward", 0, 0)
    assert ends.seconds == 4.0


def test_a_link_carries_one_message_at_a_time_in_either_direction(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT)
    first, last = ends.ranks
    first.post("forward", 0, 1, sends=True)
    last.post("forward", 0, 1, sends=False)
    last.post("backward", 0, 0, sends=True)
    first.post("backward", 0, 0, sends=False)
    first.wait("backward", 0, 0)
    assert ends.seconds == 5.0
    last.wait("forward", 0, 1)
    assert ends.seconds == 5.0


def test_with_receives_posted_early_a_link_carries_a_message_each_way(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT, both_ways=True)
    first, last = ends.ranks
    for number in (0, 1):
        last.post("forward", 0, number, sends=False)
        first.post("backward", 0, number, sends=False)
    for number in (0, 1):
        first.post("forward", 0, number, sends=True)
        last.post("backward", 0, number, sends=True)
    first.wait("backward", 0, 1)
    assert ends.seconds == 4.0
    last.wait("forward", 0, 1)
    assert ends.seconds == 6.0


def test_the_word_of_a_receiver_queues_behind_what_it_sends(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT, both_ways=True)
    first, last = ends.ranks
    first.post("backward", 0, 0, sends=False)
    last.post("backward", 0, 0, sends=True)
    first.post("forward", 0, 1, sends=True)
    last.post("forward", 0, 1, sends=False)
    last.wait("forward", 0, 1)
    assert ends.seconds == 5.0


def test_other_links_carry_at_the_same_time_and_unlimited_ones_take_no_time(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT, SlowCut(link=1, forward_seconds=3.5, backward_seconds=1.0), None, num_ranks=4)
    for cut in range(3):
        ends.ranks[cut].post("forward", cut, 0, sends=True)
        ends.ranks[cut + 1].post("forward", cut, 0, sends=False)
    ends.ranks[3].wait("forward", 2, 0)
    assert ends.seconds == 0.0
    ends.ranks[1].wait("forward", 0, 0)
    ends.ranks[2].wait("forward", 1, 0)
    assert ends.seconds == 3.5


@pytest.mark.parametrize(("waits", "expected"), [(True, 5.0), (False, 2.0)])
def test_1f1b_waits_for_what_it_sent_together_with_a_receive(tmp_path: Path, waits: bool, expected: float) -> None:
    ends = Ends(tmp_path, CUT, waits=waits)
    first, last = ends.ranks
    last.post("backward", 0, 0, sends=True)
    first.post("backward", 0, 0, sends=False)
    first.post("forward", 0, 1, sends=True)
    last.post("forward", 0, 1, sends=False)
    first.wait("backward", 0, 0)
    assert ends.seconds == expected


def test_steps_repeat(tmp_path: Path) -> None:
    num_microbatches, num_steps = 3, 9
    ends = Ends(tmp_path, CUT, num_microbatches=num_microbatches, waits=True)
    first, last = ends.ranks
    for _ in range(num_steps):
        for number in range(num_microbatches):
            first.post("forward", 0, number, sends=True)
            last.post("forward", 0, number, sends=False)
            last.wait("forward", 0, number)
            last.post("backward", 0, number, sends=True)
            first.post("backward", 0, number, sends=False)
            first.wait("backward", 0, number)
    assert ends.seconds == num_steps * num_microbatches * 5.0


def test_cuts_that_are_not_there_are_nobodys(tmp_path: Path) -> None:
    ends = Ends(tmp_path, CUT)
    ends.ranks[0].post("backward", -1, 0, sends=True)
    ends.ranks[1].post("forward", 1, 0, sends=True)
    ends.ranks[0].wait("forward", -1, 0)
    assert ends.seconds == 0.0


def test_a_plan_of_one_stage_has_no_links_to_slow_down(tmp_path: Path) -> None:
    links = LimitedLinks(tmp_path / "links", (), 4)
    links.post("forward", 0, 0, sends=True)
    links.wait("forward", 0, 0)
