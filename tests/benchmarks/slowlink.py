"""Two ranks in two network namespaces, 100 Mbit/s between them, for tests/benchmarks/running.py.

``python -m tests.benchmarks.slowlink RANK SCHEDULE CODEC STEPS`` is one rank.  Its stages take 40 ms forward and 80 ms
backward, by a table; what crosses is 1 MiB.  The link is a pair of veth with ``tc tbf`` on both ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from autopart import running
from autopart.schema.codec import CodecName
from autopart.schema.job import ScheduleName
from autopart.tracing import trace
from tests.running.handmade import make_plan

__all__ = ["measure", "why_not"]

CONFIGURATIONS: tuple[tuple[ScheduleName, CodecName], ...] = (
    ("1f1b", "none"), ("interleaved", "none"), ("1f1b", "fp16"), ("1f1b", "int8"), ("interleaved", "int8")
)  # fmt: skip
NAMESPACES, ENDS, ADDRESSES = ("apA", "apB"), ("apvA", "apvB"), ("10.77.3.1", "10.77.3.2")
SHAPING = ("tbf", "rate", "100mbit", "burst", "64kb", "latency", "200ms")
NUM_MICROBATCHES, ROWS, WIDTH = 8, 256, 1024
FORWARD_SECONDS, BACKWARD_SECONDS = 0.04, 0.08
PORT = 29577


def why_not() -> str:
    """Why there can be no such link here; empty if there can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "ip and tc are not installed"
    try:
        with _link():
            return ""
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return f"{' '.join(error.cmd)}: {said[-1] if said else 'failed'}"


def measure(*, steps: int) -> dict[tuple[ScheduleName, CodecName], list[float]]:
    """Seconds of every step of every configuration."""
    with _link():
        return {(schedule, codec): _run(schedule, codec, steps) for schedule, codec in CONFIGURATIONS}


def _run(schedule: ScheduleName, codec: CodecName, steps: int) -> list[float]:
    def rank(number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", NAMESPACES[number], sys.executable, "-m", "tests.benchmarks.slowlink", str(number),
             schedule, codec, str(steps)],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT), "RANK": str(number),
                 "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": ENDS[number]},
        )  # fmt: skip

    processes = [rank(0), rank(1)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), f"{schedule} {codec} failed"
    found: list[float] = json.loads(outputs[0].splitlines()[-1])
    return found


@contextmanager
def _link() -> Iterator[None]:
    """Two namespaces and the link between them; gone afterwards."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        for name in NAMESPACES:
            ip("netns", "add", name)
        ip("link", "add", ENDS[0], "netns", NAMESPACES[0], "type", "veth", "peer", "name", ENDS[1],
           "netns", NAMESPACES[1])  # fmt: skip
        for name, end, address in zip(NAMESPACES, ENDS, ADDRESSES, strict=True):
            inside = ("netns", "exec", name)
            ip(*inside, "ip", "addr", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                ip(*inside, "ip", "link", "set", device, "up")
            ip(*inside, "tc", "qdisc", "add", "dev", end, "root", *SHAPING)
        yield
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def main(rank: int, schedule: ScheduleName, codec: CodecName, steps: int) -> None:
    """One rank; the first prints the seconds of its steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    inputs = torch.randn(NUM_MICROBATCHES * ROWS, WIDTH)
    program = trace(model, (inputs[:ROWS],), training=True)
    plan = make_plan(program.graph, (1,), num_microbatches=NUM_MICROBATCHES, mode="train", schedule=schedule)
    dist.init_process_group("gloo")
    pace = running.TimetablePace(
        seconds={("forward", rank): FORWARD_SECONDS, ("backward", rank): BACKWARD_SECONDS},
        in_two=frozenset({1} if rank == 1 else ()),
    )
    pipeline = running.DistributedPipeline(
        program, plan, rank, loss_fn=nn.functional.mse_loss, compress=codec, stopwatch=running.HostStopwatch(pace)
    )
    seconds = []
    for _ in range(1 + steps):
        dist.barrier()
        start = time.perf_counter()
        pipeline.step(inputs, target=inputs)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps(seconds[1:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))  # type: ignore[arg-type]
