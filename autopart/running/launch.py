"""Starting the ranks of a run and waiting for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import autopart
from autopart.errors import AutopartError
from autopart.progress import Progress
from autopart.running.causes import root_cause
from autopart.running.records import (
    Deaths,
    RankFailure,
    RankResult,
    RankSpec,
    deaths_path,
    failure_path,
    progress_path,
    result_path,
)
from autopart.schema import store

__all__ = ["launch"]

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
"""for torch's launcher to stop its ranks before it is killed itself"""
_LOG_BYTES = 4096


def launch(spec: RankSpec, *, num_threads: int, progress: Progress, what: str) -> tuple[RankResult, ...]:
    """What the ranks of ``spec`` measured, one after the other.

    Each rank is a process with ``num_threads`` OpenMP threads, started by torch's launcher; no process is left
    behind, however this ends.

    Args:
        spec: what to run; its directory holds everything that is written.
        num_threads: OpenMP threads of each rank at start; a rank may set fewer for itself.
        progress: told of every step of rank 0.
        what: how progress calls the run.

    Raises:
        RunError: a rank failed; the message is that of the first.
    """
    directory = Path(spec.directory)
    spec_path = directory / "spec.json"
    store.save(spec, spec_path)
    total, told = spec.warmup + spec.steps, 0
    progress(what, 0, total)
    with _agent(directory, len(spec.devices), spec_path, num_threads) as agent:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                exit_code = agent.wait(_POLL_SECONDS)
                break
            done = _steps_done(directory)
            if told < done < total:
                progress(what, done, total)
                told = done
    paths = [result_path(directory, rank) for rank in range(len(spec.devices))]
    if exit_code or not all(path.exists() for path in paths):
        raise _failure(spec)
    progress(what, total, total)
    return tuple(store.load(RankResult, path) for path in paths)


@contextlib.contextmanager
def _agent(directory: Path, num_ranks: int, spec_path: Path, num_threads: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "autopart.running.agent", str(directory), str(num_ranks), str(spec_path)]
    with (directory / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=_environment(num_threads),
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the ranks
        )
    try:
        yield agent
    finally:
        _stop(agent)


def _environment(num_threads: int) -> dict[str, str]:
    # Run as -m, Python would put the working directory first on the path, where a user's profile.py or types.py
    # would hide the standard library's.
    package = str(Path(autopart.__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return os.environ | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(num_threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def _stop(agent: subprocess.Popen[bytes]) -> None:
    """Ends the launcher, which ends its ranks; ranks of a launcher that had to be killed are killed by Linux."""
    if agent.poll() is not None:
        return
    agent.terminate()
    try:
        agent.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


def _steps_done(directory: Path) -> int:
    path = progress_path(directory)
    return path.stat().st_size if path.exists() else 0


def _failure(spec: RankSpec) -> AutopartError:
    directory, ranks = Path(spec.directory), range(len(spec.devices))
    failures = [store.load(RankFailure, path) for rank in ranks if (path := failure_path(directory, rank)).exists()]
    path = deaths_path(directory)
    deaths = store.load(Deaths, path).deaths if path.exists() else ()
    return root_cause(failures, deaths, spec.devices, lambda rank: _last_lines(directory, rank))


def _last_lines(directory: Path, rank: int | None) -> str:
    """The end of a rank's standard error, or of the launcher's for None."""
    logs = directory.glob("agent.log" if rank is None else f"logs/*/attempt_0/{rank}/stderr.log")
    texts = [log.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip() for log in logs]
    return "\n".join("\n".join(texts).splitlines()[-10:])
