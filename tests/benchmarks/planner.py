"""How near to the optimum chain plans are proven, and what that costs: one row per claim.

    python -m tests.benchmarks.planner [--json] [NAME ...]

Time is of the whole of ``planning.plan`` (search, proof, baselines, check): processor seconds of this process and its
children, and wall seconds.  The best baseline of the same run is beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from autopart.planning import plan
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.problem import Candidate
from tests.benchmarks.chains import Shape, cluster_of, jittered_chain, transformer

OBJECTIVES = ("throughput", "latency", "cost", "memory", "devices")
FOUR = ("h100", "a100", "a10", "l4")
FIVE = (*FOUR, "v100")
THREE = ("a100", "a100-40", "v100")
TRAIN = {"mode": "train", "optimizer": "adamw"}

Case = tuple[Candidate, Cluster, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One claim and what was found."""

    name: str
    goal_gap: float
    goal_seconds: float
    gap: float
    outcome: str
    bound: str
    cpu_seconds: float
    wall_seconds: float
    step_seconds: float
    best_baseline: str
    baseline_over_plan: float | None


def _wide() -> Case:
    model = transformer(Shape(num_blocks=47, hidden=7168), FOUR, 256, training=True)
    return model, cluster_of(dict.fromkeys(FOUR, 16)), TRAIN


def _parallel() -> Case:
    model = transformer(Shape(num_blocks=47, hidden=7168, sequence=512, num_sequences=8), FOUR, 256, training=True)
    words = {"tensor_parallel": 8, "data_parallel": 8, "recompute": "auto"}
    return model, cluster_of(dict.fromkeys(FOUR, 16)), TRAIN | words


def _memory() -> Case:
    model = transformer(Shape(num_blocks=40, hidden=5120), THREE, 32, training=True)
    return model, cluster_of({"a100": 4, "a100-40": 4, "v100": 8}), TRAIN


def _huge(per_node: int | None = None, *, training: bool = True) -> Case:
    """Torch keeps a receive buffer per micro-batch, and all logits on the last stage: more micro-batches do not fit."""
    model = transformer(Shape(num_blocks=124, hidden=16384, whole_blocks=True), FIVE, 128, training=training)
    devices = {"h100": 205, "a100": 205, "a10": 205, "l4": 205, "v100": 204}
    words = TRAIN | {"recompute": "auto"} if training else {}
    return model, cluster_of(devices, per_node=per_node), words | {"tensor_parallel": 8}


def _nodes(objective: str) -> Case:
    """Forty devices of five kinds in twenty nodes of two, ten times as quick inside as between them."""
    words = {"objective": objective}
    return jittered_chain(96, FIVE, 64), cluster_of(dict.fromkeys(FIVE, 8), per_node=2), words


CASES: dict[str, tuple[float, float, Callable[[], Case]]] = {
    "96 layers x 64, training": (1e-3, 5.0, _wide),
    "96 x 64, dp x tp x recompute": (5e-3, 15.0, _parallel),
    "1000 layers x 16": (1e-3, 30.0, lambda: (jittered_chain(1000, FOUR, 64), cluster_of(dict.fromkeys(FOUR, 4)), {})),
    "4000 layers x 8": (
        1e-2, 30.0,
        lambda: (jittered_chain(4000, ("h100", "a10", "l4"), 64), cluster_of({"h100": 2, "a10": 2, "l4": 4}), {}),
    ),
    "82 layers x 16, 1F1B memory": (5e-3, 30.0, _memory),
    "126 layers x 1024": (1e-2, 60.0, _huge),
    "126 x 1024 in nodes of 8": (1e-2, 60.0, partial(_huge, 8)),
    "126 x 1024 in nodes of 8, inference": (1e-2, 60.0, partial(_huge, 8, training=False)),
    **{f"96 x 40 in 20 nodes, {objective}": (1e-2, 60.0, partial(_nodes, objective)) for objective in OBJECTIVES},
}


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(name: str) -> Row:
    """Plan one case; the time limit is wide, for other work on the machine must not change what is found."""
    goal_gap, goal_seconds, make = CASES[name]
    candidate, cluster, words = make()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    found = plan((candidate,), cluster, Job(batch=candidate.batch, gap=goal_gap, time_limit_seconds=600.0, **words))
    cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
    fitting = [b for b in found.baselines if b.factor is not None]
    best = min(fitting, key=lambda b: b.factor or 0.0, default=None)
    return Row(
        name=name, goal_gap=goal_gap, goal_seconds=goal_seconds, gap=found.proof.gap, outcome=found.proof.outcome,
        bound=found.proof.bound, cpu_seconds=cpu, wall_seconds=wall, step_seconds=found.prediction.step_seconds,
        best_baseline=best.name if best else "none fits", baseline_over_plan=best.factor if best else None,
    )


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="cases; default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    names = options.names or CASES
    if options.json:
        print(json.dumps([asdict(measure(name)) for name in names], indent=2))
        return
    for row in map(measure, names):
        baseline = "" if row.baseline_over_plan is None else f" {row.baseline_over_plan:.3f}x"
        print(f"{row.name:30} gap {row.gap:8.3%} (goal {row.goal_gap:.1%})  cpu {row.cpu_seconds:6.1f} s "
              f"(goal {row.goal_seconds:.0f} s)  wall {row.wall_seconds:6.1f} s  {row.outcome}  "
              f"best baseline {row.best_baseline}{baseline}", flush=True)


if __name__ == "__main__":
    main()
