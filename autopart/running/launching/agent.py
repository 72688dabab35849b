"""The process that starts the ranks: torch's own launcher, told to leave on disk how they ended.

``python -m autopart.running.launching.agent DIRECTORY NUM_RANKS MODULE SPEC``

It is a Python of its own, whatever its caller has computed before, and computes nothing itself: neither autograd's
threads nor the state of an accelerator survive a fork.  Where there is no accelerator the ranks are forked from it,
with everything that takes long to import; elsewhere each is a Python of its own too.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
import uuid
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from autopart.running.launching.lifetime import end_with_parent
from autopart.running.launching.records import Death, Deaths, deaths_path
from autopart.schema import store

__all__ = ["main"]

_AFTER_SECONDS = 0.5
"""that a failed rank stays: of forked ones torch's launcher tells the first only, which is to be the one that died"""


def main(arguments: list[str]) -> int:
    """Runs ``MODULE.main([SPEC])`` on NUM_RANKS ranks and returns the exit code.

    The port is a free one; each rank's output goes to files under DIRECTORY/logs.
    """
    directory, (num_ranks, module, spec) = Path(arguments[0]), arguments[1:]
    end_with_parent(signal.SIGTERM)
    options = ["--nproc-per-node", num_ranks, "--max-restarts", "0"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", uuid.uuid4().hex]
    logs = ["--log-dir", str(directory / "logs"), "--redirects", "3"]
    parsed = parse_args([*options, *meeting, *logs, "-m", module, spec])  # type: ignore[no-untyped-call]
    config, command, words = config_from_args(parsed)
    if sys.platform == "linux" and not torch.accelerator.is_available():
        importlib.import_module(module)
        config.start_method, command, words = "fork", _rank, [module, spec]
    try:
        elastic_launch(config, command)(*words)
    except ChildFailedError as error:
        deaths = tuple(Death(rank=rank, exit_code=each.exitcode) for rank, each in sorted(error.failures.items()))
        store.save(Deaths(deaths=deaths), deaths_path(directory))
        return 1
    return 0


def _rank(module: str, spec: str) -> None:
    """What a forked rank does: as ``python -m MODULE SPEC``."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher's own handlers came along
    code = importlib.import_module(module).main([spec])
    if code:
        time.sleep(_AFTER_SECONDS)
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
