"""Why a run failed: which of its ranks failed first, and of what.

When one rank ends, its neighbours fail too, with a broken connection.  What people need to know is the first.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from autopart.errors import RunError
from autopart.running.records import Death, RankFailure

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
    "read error",
    "gloo connectfullmesh failed",
    "nccl communicator was aborted",
    "ncclremoteerror",
)
_HINTS = {
    signal.SIGKILL: "usually the system was out of memory: cap the device with --max-memory, or give a smaller --batch",
    signal.SIGSEGV: "a native library crashed: run the rank's model alone to see where",
}


def is_secondary(failure: RankFailure) -> bool:
    """Whether a failure is what a rank sees of another rank's failure."""
    message = failure.message.lower()
    return failure.kind in _CONNECTION_KINDS or any(words in message for words in _CONNECTION_WORDS)


def root_cause(
    failures: Sequence[RankFailure], deaths: Sequence[Death], devices: Sequence[str], log: str
) -> RunError:
    """The error that names the rank that failed first.

    In this order: the earliest exception of a rank's own, a rank ended by a signal, a rank that ended without a
    word, the earliest broken connection.

    Args:
        failures: the exceptions ranks left behind.
        deaths: how ranks ended, as torch's launcher saw it.
        devices: names of the devices, by rank.
        log: what was printed last, for when nothing else is known.
    """
    failures = sorted(failures, key=lambda failure: failure.unix_seconds)
    own = [failure for failure in failures if not is_secondary(failure)]
    if own:
        return _raised(own[0])
    told = {failure.rank for failure in failures}
    killed = sorted((death for death in deaths if death.exit_code < 0), key=_sigterm_last)
    if killed:
        return _killed(killed[0], devices, log)
    silent = [death for death in deaths if death.rank not in told]
    if silent:
        rank, code = silent[0].rank, silent[0].exit_code
        message = f"rank {rank} ({devices[rank]}) ended with exit code {code} and left no exception; see its last lines"
        return RunError(message, detail=log)
    if failures:
        return _raised(failures[0])
    return RunError("the ranks could not be started; see the launcher's last lines", detail=log)


def _raised(failure: RankFailure) -> RunError:
    what = failure.message if failure.is_usage else f"{failure.kind}: {failure.message}"
    return RunError(f"rank {failure.rank} ({failure.device}) failed: {what}", detail=failure.detail)


def _killed(death: Death, devices: Sequence[str], log: str) -> RunError:
    number = -death.exit_code
    try:
        name = signal.Signals(number).name
        hint = _HINTS.get(signal.Signals(number), "")
    except ValueError:  # a real-time signal has a number and no name
        name, hint = f"signal {number}", ""
    return RunError(
        f"rank {death.rank} ({devices[death.rank]}) was killed by {name}" + (f"; {hint}" if hint else ""), detail=log
    )


def _sigterm_last(death: Death) -> bool:
    """The launcher ends the remaining ranks with SIGTERM, so any other signal came before."""
    return death.exit_code == -signal.SIGTERM
