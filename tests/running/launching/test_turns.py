from __future__ import annotations

from pathlib import Path

from autopart.running import progress_path, turn_after
from autopart.running.launching.records import over_path, steps_done


def test_steps_of_two_runs_are_taken_in_turn_until_one_is_over(tmp_path: Path) -> None:
    leader, follower = tmp_path / "leader", tmp_path / "follower"
    leader.mkdir()
    follower.mkdir()
    order: list[str] = []
    turns = {
        leader: turn_after(follower, leads=True),
        follower: turn_after(leader, leads=False, sleep=lambda _: lead()),
    }

    def step(directory: Path) -> None:
        turns[directory](steps_done(directory))
        order.append(directory.name)
        with progress_path(directory).open("ab") as file:
            file.write(b".")

    def lead() -> None:
        """What happens while the follower waits."""
        if steps_done(leader) == 3:
            over_path(leader).touch()
        else:
            step(leader)

    for _ in range(5):
        step(follower)
    assert order == ["leader", "follower"] * 3 + ["follower"] * 2
