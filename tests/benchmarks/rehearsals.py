"""Heterogeneous clusters rehearsed on this machine, for tests/benchmarks/running.py."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from autopart import api, running
from autopart.modelsource import load
from autopart.schema.job import Mode, ScheduleName

__all__ = ["SETUPS", "Rehearsal", "Setup", "rehearse"]

FASTEST = 0.2
"""of a core: slow enough for four devices to find two cores free"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A cluster and a job."""

    speeds: tuple[float, ...]
    """relative"""
    schedule: ScheduleName
    mode: Mode = "train"
    megabit_per_second: float | None = None
    """of the links between devices; None: what this machine does"""
    kind: str = "skip"

    @property
    def name(self) -> str:
        link = "" if self.megabit_per_second is None else f", {self.megabit_per_second:g} Mbit/s"
        return f"{':'.join(f'{each:g}' for each in self.speeds)} {self.kind} {self.mode} {self.schedule}{link}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What came of one."""

    setup: Setup
    predicted_seconds: float
    measured_seconds: float
    note: str


SETUPS = (
    Setup(speeds=(1, 1), schedule="gpipe"),
    Setup(speeds=(1, 0.5), schedule="1f1b"),
    Setup(speeds=(1, 0.25), schedule="gpipe", kind="chain"),
    Setup(speeds=(1, 0.5), schedule="gpipe", mode="infer"),
    Setup(speeds=(0.5, 1), schedule="1f1b", megabit_per_second=100),
    Setup(speeds=(1, 1, 1), schedule="1f1b"),
    Setup(speeds=(1, 0.5, 0.25), schedule="gpipe"),
    Setup(speeds=(0.25, 1, 0.5), schedule="1f1b", kind="chain"),
    Setup(speeds=(1, 0.5, 0.5), schedule="1f1b", megabit_per_second=200),
    Setup(speeds=(1, 0.25, 1), schedule="gpipe", mode="infer", megabit_per_second=100),
    Setup(speeds=(1, 1, 1, 1), schedule="1f1b", kind="chain"),
    Setup(speeds=(1, 0.5, 0.5, 0.25), schedule="gpipe"),
    Setup(speeds=(0.5, 1, 1, 0.25), schedule="1f1b"),
    Setup(speeds=(1, 0.75, 0.5, 0.25), schedule="gpipe", mode="infer"),
)

MODEL = '''
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self, skips):
        super().__init__()
        self.skips = skips
        self.enter = nn.Linear(256, 512)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 512)) for _ in range(12)
        )
        self.leave = nn.Linear(512, 16)

    def forward(self, x):
        start = value = self.enter(x)
        for block in self.blocks:
            value = value + block(value)
        return self.leave(value * start if self.skips else value)

def build_model():
    torch.manual_seed(0)
    return Residual(SKIPS)

def example_inputs():
    return (torch.randn(64, 16, 256),)

def example_targets():
    return (torch.randn(64, 16, 16),)

def loss_fn(output, target):
    return nn.functional.mse_loss(output, target)
'''


def rehearse(setup: Setup, throttle: running.Throttle, *, steps: int) -> Rehearsal:
    """Plans for the cluster with all its devices in use, and runs that on stand-ins.

    Args:
        setup: the cluster and the job.
        throttle: how stand-ins are made slow; quotas have no table of times, so they run on what the profile says.
        steps: timed ones.
    """
    with tempfile.TemporaryDirectory() as directory:
        model, cluster = Path(directory) / "model.py", Path(directory) / "cluster.yaml"
        model.write_text(MODEL.replace("SKIPS", str(setup.kind == "skip")))
        cluster.write_text(_cluster_text(setup))
        plan = api.plan_source(
            load(str(model)), cluster_file=cluster, mode=setup.mode, schedule=setup.schedule, microbatches=8,
            optimizer="none", stages=len(setup.speeds), verify=False,
        )
        found = api.run_source(
            plan, str(model), steps=steps, warmup=2, single=False, layers=False, emulate=cluster, throttle=throttle
        )
    late = next((word for word in found.verdict.split(". ") if "took longer" in word), "")
    return Rehearsal(
        setup=setup, predicted_seconds=found.predicted_step_seconds, measured_seconds=found.median_step_seconds,
        note=f"{late or f'{found.core_share:.0%} of a core'}, load {os.getloadavg()[0]:.1f}",
    )


def _cluster_text(setup: Setup) -> str:
    nodes = setup.megabit_per_second is not None
    devices = "\n".join(
        f"  - {{name: d{index}, speed: {FASTEST * speed}, node: {f'n{index}' if nodes else 'here'}}}"
        for index, speed in enumerate(setup.speeds)
    )
    pairs = [(one, other) for one in range(len(setup.speeds)) for other in range(one)] if nodes else []
    links = "\n".join(
        f"  - {{between: [n{one}, n{other}], latency: 1ms, bandwidth: {setup.megabit_per_second}Mbit/s}}"
        for one, other in pairs
    )
    return f"devices:\n{devices}\n" + (f"links:\n{links}\n" if links else "")
