"""Why a run failed: which of its ranks failed first, and of what.

When one rank ends, its neighbours fail too, with a broken connection.  What people need to know is the first.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from autopart.errors import OutOfMemoryError, RankError
from autopart.running.launching.records import Death, RankFailure

__all__ = ["is_secondary", "root_cause"]

_CONNECTION_KINDS = ("ConnectionError", "ConnectionResetError", "BrokenPipeError", "DistNetworkError", "DistStoreError")
_CONNECTION_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "socket closed",
    "application timeout caused pair closure",
    "timed out waiting",
    "read error",
    "gloo connectfullmesh failed",
    "nccl communicator was aborted",
    "ncclremoteerror",
)
_MEMORY_KINDS = ("OutOfMemoryError", "MemoryError")
_MEMORY_WORDS = ("can't allocate memory", "out of memory")
_DISK_WORDS = (
    "no space left on device", "disk quota exceeded", "file too large", "read-only file system", "cannot be written to",
)
_HINTS: dict[int, str] = {
    signal.SIGKILL: "usually the system was out of memory: cap the device with --max-memory, or give a smaller --batch",
    signal.SIGSEGV: "a native library crashed: run the rank's model alone to see where",
}


def is_secondary(failure: RankFailure) -> bool:
    """Whether a failure is what a rank sees of another rank's failure."""
    message = failure.message.lower()
    return failure.kind in _CONNECTION_KINDS or any(words in message for words in _CONNECTION_WORDS)


def root_cause(
    failures: Sequence[RankFailure],
    deaths: Sequence[Death],
    devices: Sequence[str],
    last_lines: Callable[[int | None], str],
) -> RankError:
    """The error that names the rank that failed first.

    In this order: the earliest exception of a rank's own; a rank ended by a signal; a rank that ended without a
    word; a rank ended by SIGTERM, which is how torch's launcher ends the others; the earliest broken connection.

    Args:
        failures: the exceptions ranks left behind.
        deaths: how ranks ended, as torch's launcher saw it.
        devices: names of the devices, by rank.
        last_lines: what a rank printed last, or None for the launcher, for when nothing else is known.
    """
    failures = sorted(failures, key=lambda failure: failure.unix_seconds)
    own = [failure for failure in failures if not is_secondary(failure)]
    if own:
        return _raised(own[0])
    told = {failure.rank for failure in failures}
    untold = sorted((death for death in deaths if death.rank not in told), key=_precedence)
    if untold and (untold[0].exit_code != -signal.SIGTERM or not failures):
        return _ended(untold[0], devices[untold[0].rank], last_lines(untold[0].rank))
    if failures:
        return _raised(failures[0], fate="link")
    message = "the ranks could not be started; see the launcher's last lines"
    return RankError(message, detail=last_lines(None), fate="unstarted")


def _raised(failure: RankFailure, fate: str = "raised") -> RankError:
    what = failure.message if failure.is_usage else f"{failure.kind}: {failure.message}"
    message, text = f"rank {failure.rank} ({failure.device}) failed: {what}", failure.message.lower()
    if failure.kind in _MEMORY_KINDS or any(words in text for words in _MEMORY_WORDS):
        return OutOfMemoryError(message, detail=failure.detail, device=failure.device, fate="memory")
    if any(words in text for words in _DISK_WORDS):
        fate = "disk"
    return RankError(message, detail=failure.detail, device="" if fate == "link" else failure.device, fate=fate)


def _ended(death: Death, device: str, log: str) -> RankError:
    who = f"rank {death.rank} ({device})"
    if death.exit_code >= 0:
        message = f"{who} ended with exit code {death.exit_code} and no exception; see what it printed last"
        return RankError(message, detail=log, device=device, fate="ended")
    number = -death.exit_code
    names = {each.value: each.name for each in signal.Signals}
    hint = f"; {_HINTS[number]}" if number in _HINTS else ""
    message = f"{who} was killed by {names.get(number, f'signal {number}')}{hint}"
    return RankError(message, detail=log, device=device, fate="killed")


def _precedence(death: Death) -> int:
    if death.exit_code == -signal.SIGTERM:
        return 2
    return 0 if death.exit_code < 0 else 1
