"""Starting the ranks of a run and waiting for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import autopart
from autopart.errors import RankError
from autopart.progress import Progress
from autopart.running.launching.causes import root_cause
from autopart.running.launching.records import (
    Deaths,
    Launchable,
    RankFailure,
    RankResult,
    deaths_path,
    failure_path,
    over_path,
    result_path,
    steps_done,
)
from autopart.schema import store

__all__ = ["Ranks", "finish"]

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 5.0
"""for torch's launcher to stop its ranks before it is killed itself"""
_LOG_BYTES = 4096


class Ranks:
    """The processes of a run, started by torch's launcher; a context manager that leaves none of them behind.

    Each rank is a process with ``num_threads`` OpenMP threads.

    Args:
        spec: what to run, a dataclass; its directory holds everything that is written.
        num_threads: OpenMP threads of each rank at start; a rank may set fewer for itself.
        progress: told of every step of rank 0.
        what: how progress calls the run.
        module: what each rank runs, with the file of the spec as its argument.
    """

    def __init__(
        self, spec: Launchable, *, num_threads: int, progress: Progress, what: str, module: str = "autopart.cli.rank"
    ) -> None:
        self._spec, self._num_threads, self._progress, self._what = spec, num_threads, progress, what
        self._module, self._total, self._told = module, spec.num_steps, 0

    def __enter__(self) -> Ranks:
        self._agent = _agent(self._spec, self._num_threads, self._module)
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self._agent)
        self._say_over()

    def wait(self, beside: Ranks | None = None, watch: Callable[[], None] = lambda: None) -> None:
        """Waits for the end of all ranks.

        Args:
            beside: ranks that these take turns with: if they end first, these are told not to wait for them.
            watch: called some times a second meanwhile; may raise.

        Raises:
            RankError: a rank failed; the message is that of the first.
        """
        self._progress(self._what, 0, self._total)
        while not self._ended():
            if beside is not None:
                beside._ended()
            watch()
            done = steps_done(self._spec.directory)
            if self._told < done < self._total:
                self._progress(self._what, done, self._total)
                self._told = done
        paths = [result_path(self._spec.directory, rank) for rank in range(len(self._spec.devices))]
        if self._agent.returncode or not all(path.exists() for path in paths):
            raise _failure(self._spec)
        self._progress(self._what, self._total, self._total)

    def finish(self, beside: Ranks | None = None) -> tuple[RankResult, ...]:
        """Waits for the end of all ranks; what they measured, in order; arguments and errors as those of ``wait``."""
        self.wait(beside)
        ranks = range(len(self._spec.devices))
        return tuple(store.load(RankResult, result_path(self._spec.directory, rank)) for rank in ranks)

    def _ended(self) -> bool:
        try:
            self._agent.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        self._say_over()
        return True

    def _say_over(self) -> None:
        over_path(self._spec.directory).touch()


def finish(ranks: Ranks) -> tuple[RankResult, ...]:
    """Starts these ranks and waits for what they measured; errors as those of ``Ranks.finish``."""
    with ranks:
        return ranks.finish()


def _agent(spec: Launchable, num_threads: int, module: str) -> subprocess.Popen[bytes]:
    spec_path = Path(spec.directory) / "spec.json"
    store.save(spec, spec_path)
    what = (spec.directory, str(len(spec.devices)), module, str(spec_path))
    command = [sys.executable, "-m", "autopart.running.launching.agent", *what]
    with (Path(spec.directory) / "agent.log").open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=_environment(num_threads),
            start_new_session=True,  # Ctrl-C reaches us alone, and we stop the ranks
        )


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


def _failure(spec: Launchable) -> RankError:
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
