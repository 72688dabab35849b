from __future__ import annotations

import signal

import pytest

from autopart.running.launching.causes import is_secondary, root_cause
from autopart.running.launching.records import Death, RankFailure

DEVICES = ("cpu:0", "cpu:1", "cpu:2")


def failure(rank: int, seconds: float, kind: str, message: str, *, is_usage: bool = False) -> RankFailure:
    return RankFailure(
        rank=rank, device=DEVICES[rank], kind=kind, message=message, detail="their line", is_usage=is_usage,
        unix_seconds=seconds,
    )


def broken(rank: int, seconds: float) -> RankFailure:
    text = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1961."
    return failure(rank, seconds, "RuntimeError", text)


def cause(failures: list[RankFailure], deaths: list[Death]) -> str:
    return str(root_cause(failures, deaths, DEVICES, lambda rank: f"log of {rank}"))


def test_the_earliest_exception_of_its_own_wins_over_earlier_broken_connections() -> None:
    found = [broken(0, 1.0), failure(2, 3.0, "ValueError", "late"), failure(1, 2.0, "KeyError", "'x'")]
    assert cause(found, [Death(rank=0, exit_code=1)]) == "rank 1 (cpu:1) failed: KeyError: 'x'"


def test_our_own_errors_are_not_given_a_class_name() -> None:
    assert cause([failure(0, 1.0, "UsageError", "no such layer", is_usage=True)], []).endswith("failed: no such layer")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_named_and_wins_over_a_broken_connection(number: signal.Signals) -> None:
    deaths = [Death(rank=0, exit_code=1), Death(rank=1, exit_code=-number)]
    message = cause([broken(0, 1.0)] if number != signal.SIGTERM else [], deaths[1:])
    assert message.startswith(f"rank 1 (cpu:1) was killed by {number.name}")


def test_the_launchers_own_sigterm_is_not_the_cause() -> None:
    deaths = [Death(rank=0, exit_code=-signal.SIGTERM), Death(rank=1, exit_code=7)]
    assert "rank 1 (cpu:1) ended with exit code 7" in cause([], deaths)
    assert "Connection closed" in cause([broken(1, 1.0)], [Death(rank=0, exit_code=-signal.SIGTERM)])


def test_the_last_lines_are_those_of_the_rank_that_is_blamed() -> None:
    error = root_cause([], [Death(rank=2, exit_code=-signal.SIGKILL)], DEVICES, lambda rank: f"log of {rank}")
    assert error.detail == "log of 2"


def test_a_signal_without_a_name_has_its_number() -> None:
    assert "was killed by signal 40" in cause([], [Death(rank=0, exit_code=-40)])


def test_ranks_that_never_started_are_said_to_be() -> None:
    assert "could not be started" in cause([], [])


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("RuntimeError", "Read error [127.0.0.1]:9117: Connection reset by peer", True),
        ("DistNetworkError", "The client socket has failed to connect", True),
        ("RuntimeError", "shape '[2, 3]' is invalid for input of size 5", False),
    ],
)
def test_what_counts_as_secondary(kind: str, message: str, expected: bool) -> None:
    assert is_secondary(failure(0, 0.0, kind, message)) is expected


@pytest.mark.parametrize(
    ("found", "fate", "device", "exit_code"),
    [
        ([failure(1, 1.0, "RuntimeError", "DefaultCPUAllocator: can't allocate memory")], "memory", "cpu:1", 3),
        ([failure(1, 1.0, "OutOfMemoryError", "cuda:1 has 2 GiB")], "memory", "cpu:1", 3),
        ([failure(0, 1.0, "OSError", "[Errno 28] No space left on device")], "disk", "cpu:0", 5),
        ([broken(0, 1.0)], "link", "", 5),
        ([failure(0, 1.0, "RuntimeError", "Timed out waiting 1000ms for recv operation")], "link", "", 5),
        ([failure(2, 1.0, "KeyError", "'x'"), broken(0, 0.5)], "raised", "cpu:2", 5),
        ([], "unstarted", "", 5),
    ],
)
def test_the_fate_of_a_rank_says_what_may_help(
    found: list[RankFailure], fate: str, device: str, exit_code: int
) -> None:
    error = root_cause(found, [], DEVICES, lambda rank: "")
    assert (error.fate, error.device, error.exit_code) == (fate, device, exit_code)


def test_a_rank_that_was_killed_is_killed() -> None:
    error = root_cause([broken(0, 1.0)], [Death(rank=1, exit_code=-signal.SIGKILL)], DEVICES, lambda rank: "")
    assert (error.fate, error.device) == ("killed", "cpu:1")
    error = root_cause([], [Death(rank=1, exit_code=3)], DEVICES, lambda rank: "")
    assert (error.fate, error.device) == ("ended", "cpu:1")
