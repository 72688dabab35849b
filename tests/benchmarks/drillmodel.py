"""The model of tests/benchmarks/faults.py: a skip and a tied weight, and a fault in the last rank on demand.

``AUTOPART_DRILL`` is ``fault:step:marker``: in the middle of that step, once, as long as there is no file ``marker``.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import stat
import time

import torch
from torch import nn

from autopart.running import MemoryCap

NUM_MICROBATCHES, BATCH, NUM_WORDS = 4, 8, 32
SLOW_SECONDS = 0.1
FILE_BYTES = 4096
num_calls = 0


class Model(nn.Module):
    """Averages words, and finds the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_WORDS, 32)
        self.lower, self.inner, self.upper = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, NUM_WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        start = self.embed(tokens).mean(1)
        return self.head(self.upper(self.inner(self.lower(start).relu()).tanh()) + start)  # type: ignore[no-any-return]


def build_model() -> nn.Module:
    return Model()


def example_inputs() -> tuple[torch.Tensor]:
    return (torch.randint(0, NUM_WORDS, (BATCH, 5)),)


def example_targets() -> tuple[torch.Tensor]:
    return (torch.randint(0, NUM_WORDS, (BATCH,)),)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    global num_calls
    num_calls += 1
    fault, _, rest = os.environ.get("AUTOPART_DRILL", "").partition(":")
    if fault:
        step, _, marker = rest.partition(":")
        due = NUM_MICROBATCHES * (int(step) - 1) + 2
        if fault == "slow" and num_calls >= due and os.environ["WORLD_SIZE"] != "1":
            time.sleep(SLOW_SECONDS)
        elif num_calls == due and not os.path.exists(marker):
            open(marker, "w").close()
            FAULTS[fault]()
    return nn.functional.cross_entropy(output, target)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, NUM_WORDS, (100, 5), generator=torch.Generator().manual_seed(5))
    return tokens, tokens[:, 0]


def hang() -> None:
    while True:
        time.sleep(0.01)


def halve_the_cap() -> None:
    caps = [each for each in gc.get_objects() if isinstance(each, MemoryCap)]
    assert caps, "the plan gives no cap"
    for cap in caps:
        cap.cap_bytes = cap.peak_bytes // 2


def fill_the_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))


def cut_the_links() -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                link = socket.socket(fileno=os.dup(int(name)))
                if not link.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):  # a link, not the door
                    link.shutdown(socket.SHUT_RDWR)
        except OSError:  # the listing's own descriptor, or a socket that is not connected
            continue


def nothing() -> None:
    pass


FAULTS = {
    "hang": hang, "memory": halve_the_cap, "disk": fill_the_disk, "link": cut_the_links, "slow": nothing,
}  # fmt: skip
