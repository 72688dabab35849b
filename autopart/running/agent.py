"""The process that starts the ranks: torch's own launcher, told to leave on disk how they ended.

``python -m autopart.running.agent DIRECTORY NUM_RANKS MODULE SPEC``
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from autopart.running.lifetime import end_with_parent
from autopart.running.records import Death, Deaths, deaths_path
from autopart.schema import store

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Runs ``python -m MODULE SPEC`` on NUM_RANKS ranks and returns the exit code.

    The port is a free one (``--standalone``); each rank's output goes to files under DIRECTORY/logs.
    """
    directory, (num_ranks, module, spec) = Path(arguments[0]), arguments[1:]
    end_with_parent(signal.SIGTERM)
    options = ["--standalone", "--nproc-per-node", num_ranks, "--max-restarts", "0"]
    logs = ["--log-dir", str(directory / "logs"), "--redirects", "3"]
    try:
        run(parse_args([*options, *logs, "-m", module, spec]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        deaths = tuple(Death(rank=rank, exit_code=each.exitcode) for rank, each in sorted(error.failures.items()))
        store.save(Deaths(deaths=deaths), deaths_path(directory))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
