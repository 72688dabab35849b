"""Keep the other cores busy, as they will be when every device of a pipeline computes at once.

Cores of one processor share power, cache and memory: where two compute, each is slower than one alone, on some machines
by a tenth and more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["company"]

_WORK = """
import os, sys
import numpy as np
left, right = np.ones((256, 768), np.float32), [np.ones((768, 3072), np.float32) for _ in range(4)]
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    for each in right:
        left @ each
"""


@contextmanager
def company(num_processes: int) -> Iterator[None]:
    """So many processes of one thread that multiply matrices until the body is done (or this process is gone)."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORK, str(os.getpid())], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(num_processes)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()
