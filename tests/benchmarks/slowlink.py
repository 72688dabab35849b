"""A slow link between two hosts: what schedules, receives posted early and codecs make of it.

    python -m tests.benchmarks.slowlink [--steps N] [--json]

Two ranks in two network namespaces, 100 Mbit/s between them (a pair of veth with ``tc tbf`` on both ends; both
directions carry that at once).  Two stages of 40 ms forward and 80 ms backward by a table, 8 micro-batches, 1 MiB of
values forward and 1 MiB of gradients back for each.  Everything is compared with torch's own Schedule1F1B, as it is
and uncompressed: what anybody gets who uses torch.distributed.pipelining on gloo.  Ours is what ``autopart run`` takes
by itself for such a plan: receives posted as early as can be, in torch's interleaved order of one stage per device,
whose warm-up is one micro-batch deeper here.  Codecs encode values and gradients.

``... slowlink RANK STEPS`` is one rank.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import nn

from autopart import running
from autopart.planning.simulating.simulate import StageTimes, step_seconds
from autopart.program import Program
from autopart.schema.codec import CodecName
from autopart.schema.job import ScheduleName
from autopart.tracing import trace
from tests.running.handmade import make_plan
from tests.running.namespaces import Host, two_hosts, why_not

__all__ = ["BASELINE", "CONFIGURATIONS", "RATE", "Configuration", "measure", "why_not"]

RATE = "100mbit"
NUM_MICROBATCHES, ROWS, WIDTH = 8, 256, 1024
FORWARD_SECONDS, BACKWARD_SECONDS = 0.04, 0.08
MESSAGE_SECONDS = 0.0855
"""what 1 MiB takes over the link, headers included"""
PORT = 29577


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How a step is run."""

    schedule: ScheduleName
    prefetch: int = 0
    """computations that a receive is posted before it is needed; 0: as torch does"""
    codec: CodecName = "none"
    goal: float | None = None
    """times as fast as the baseline"""

    @property
    def name(self) -> str:
        early = f", receives {self.prefetch} early" if self.prefetch else ""
        return f"{self.schedule}{early}, {self.codec if self.codec != 'none' else 'uncompressed'}"

    @property
    def simulated_seconds(self) -> float | None:
        """What the planner's simulation says, of what is not compressed."""
        stages = tuple(
            StageTimes(
                forward_seconds=FORWARD_SECONDS, backward_seconds=BACKWARD_SECONDS, receive_seconds=seconds,
                return_seconds=seconds, optimizer_seconds=0.0,
            )
            for seconds in (0.0, MESSAGE_SECONDS)
        )  # fmt: skip
        if self.codec != "none":
            return None
        return step_seconds(stages, self.schedule, NUM_MICROBATCHES, training=True, prefetch=self.prefetch)


ALL = 2 * NUM_MICROBATCHES
BASELINE = Configuration(schedule="1f1b")
CONFIGURATIONS = (
    BASELINE,
    Configuration(schedule="1f1b", prefetch=ALL),
    Configuration(schedule="interleaved"),
    Configuration(schedule="interleaved", prefetch=1),
    Configuration(schedule="interleaved", prefetch=ALL, goal=1.6),
    Configuration(schedule="1f1b", codec="fp16"),
    Configuration(schedule="1f1b", codec="int8", goal=1.7),
    Configuration(schedule="interleaved", prefetch=ALL, codec="fp16"),
    Configuration(schedule="interleaved", prefetch=ALL, codec="int8", goal=1.7),
)


def measure(*, steps: int) -> dict[Configuration, list[float]]:
    """Seconds of every step of every configuration; their steps are taken in turn, in one launch."""
    with two_hosts(RATE) as hosts:
        processes = [_rank(host, number, hosts[0].address, steps) for number, host in enumerate(hosts)]
        try:
            outputs = [process.communicate(timeout=600)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert all(process.returncode == 0 for process in processes), "a rank failed"
    return dict(zip(CONFIGURATIONS, json.loads(outputs[0].splitlines()[-1]), strict=True))


def _rank(host: Host, number: int, address: str, steps: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        host.command(sys.executable, "-m", "tests.benchmarks.slowlink", str(number), str(steps)),
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True,
        env={**host.environment, "MASTER_ADDR": address, "MASTER_PORT": str(PORT), "RANK": str(number),
             "WORLD_SIZE": "2"},
    )  # fmt: skip


def run_rank(rank: int, steps: int) -> None:
    """One rank; the first prints the seconds of the steps of every configuration."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    inputs = torch.randn(NUM_MICROBATCHES * ROWS, WIDTH)
    program = trace(model, (inputs[:ROWS],), training=True)
    dist.init_process_group("gloo")
    pipelines = [_pipeline(program, rank, each) for each in CONFIGURATIONS]
    seconds: list[list[float]] = [[] for _ in pipelines]
    for number in range(1 + steps):
        for pipeline, taken in zip(pipelines, seconds, strict=True):
            dist.barrier()
            start = time.perf_counter()
            pipeline.step(inputs, target=inputs)
            dist.barrier()
            if number:  # the first warms up
                taken.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def _pipeline(program: Program, rank: int, configuration: Configuration) -> running.DistributedPipeline:
    plan = make_plan(
        program.graph, (1,), num_microbatches=NUM_MICROBATCHES, mode="train", schedule=configuration.schedule
    )
    pace = running.TimetablePace(
        seconds={("forward", rank): FORWARD_SECONDS, ("backward", rank): BACKWARD_SECONDS},
        in_two=frozenset({1} if rank == 1 else ()),
    )
    pipeline = running.DistributedPipeline(
        program, plan, rank, loss_fn=nn.functional.mse_loss, compress=configuration.codec,
        stopwatch=running.HostStopwatch(pace), prefetch=configuration.prefetch,
    )
    assert not configuration.prefetch or not pipeline.notes, pipeline.notes  # a fallback would be measured as ours
    return pipeline


def main() -> None:
    """Prints the table, or is a rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rank", nargs="*", type=int, metavar="RANK STEPS", help="be this rank")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    if options.rank:
        run_rank(*options.rank)
        return
    if reason := why_not(RATE):
        raise SystemExit(f"no such link here: {reason}")
    load, seconds = os.getloadavg()[0], measure(steps=options.steps)
    base = seconds[BASELINE]
    rows = [
        {"configuration": each.name, "step (s)": statistics.median(taken), "least": min(taken), "most": max(taken),
         "simulated": each.simulated_seconds, "times as fast": statistics.median(base) / statistics.median(taken),
         "goal": each.goal}
        for each, taken in seconds.items()
    ]  # fmt: skip
    if options.json:
        settings = [asdict(each) for each in CONFIGURATIONS]
        print(json.dumps({"load": load, "torch": torch.__version__, "configurations": settings, "rows": rows}))
        return
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    print(f"load before {load:.1f}, torch {torch.__version__}, {options.steps} steps of each, taken in turn")


if __name__ == "__main__":
    main()
