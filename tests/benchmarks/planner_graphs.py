"""Placing graphs: objective, bound and seconds, against a human expert's split and one accelerator.

    python -m tests.benchmarks.planner_graphs [DIRECTORY] [--json] [--time-limit SECONDS]

DIRECTORY holds workloads of github.com/msr-fiddle/dnn-partitioning (throughput-inputs), NAME.json, and the experts'
splits beside them, NAME_expert.json.  Every one is placed contiguously (goal: proven in at most 10 s) and without
contiguity.  Without a directory only the generated graphs are placed: operators of an encoder in training, 2,384 nodes
(goal: at most 1 % gap in 30 s), 3,992 nodes on 8 devices of 3 kinds, and in both modes chains side by side, which have
too many ideals, and 4,204 nodes, which are too many for the integer program.  CPU seconds are of this process and its
children.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tabulate import tabulate

from autopart.planning import plan_workload
from autopart.planning.graphs.dagplan import contiguous
from autopart.planning.graphs.dagproblem import DagProblem, DeviceKind
from autopart.planning.graphs.workload import problem_of
from autopart.planning.graphs.workloadcheck import device_loads
from autopart.schema.workload import Workload
from autopart.schema.workloadfile import load_workload
from tests.planning.workloads import inception, lstm_grid, training, transformer

DEVICES = {"accelerators": 6, "cpus": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One placement."""

    workload: str
    num_nodes: int
    mode: str
    objective: float
    bound: float
    gap: float
    outcome: str
    bound_name: str
    cpu_seconds: float
    wall_seconds: float
    expert: float | None
    """largest load of the expert's split / ours"""
    one_accelerator: float
    """all on one accelerator / ours; memory not regarded"""


def cpu_seconds() -> float:
    """Of this process and its children."""
    return math.fsum(os.times()[:4])


def placed(name: str, job: Workload, *, mode: str, time_limit: float, expert: float | None) -> Row:
    """Places a workload and compares."""
    began, wall = cpu_seconds(), time.perf_counter()
    answer = plan_workload(job, contiguous_only=mode == "contiguous", time_limit_seconds=time_limit)
    return Row(
        workload=name, num_nodes=len(job.nodes), mode=mode, objective=answer.objective, bound=answer.bound,
        gap=answer.gap, outcome=answer.outcome, bound_name=answer.bound_name, cpu_seconds=cpu_seconds() - began,
        wall_seconds=time.perf_counter() - wall, expert=expert and expert / answer.objective,
        one_accelerator=math.fsum(node.accelerator_time for node in job.nodes) / answer.objective,
    )


def expert_load(job: Workload, path: Path) -> float | None:
    """Largest load of an expert's split; None if there is none."""
    if not path.exists():
        return None
    split = json.loads(path.read_text(encoding="utf-8"))
    place = {node: f"accelerator{i}" for i, part in enumerate(split["fpgas"]) for node in part["nodes"]}
    place |= {node: f"cpu{i}" for i, part in enumerate(split["cpus"]) for node in part["nodes"]}
    color = {node.color_class: place[node.id] for node in job.nodes if node.id in place}
    where = tuple((node.id, place.get(node.id) or color[node.color_class]) for node in job.nodes)
    return max(load.load for load in device_loads(job, where))


def mixed_kinds(job: Workload) -> DagProblem:
    """The graph on 3 + 3 + 2 devices of speed 1, 0.45 and 0.2, the last behind a slower link."""
    problem = problem_of(job, True)
    kinds = (("fast", 3, 1.0), ("middle", 3, 1.0), ("slow", 2, 1.5))
    return replace(
        problem,
        kinds=tuple(
            DeviceKind(name=name, count=count, capacity_bytes=math.inf, transfer_factor=factor)
            for name, count, factor in kinds
        ),
        times=tuple(tuple(time / speed for time in problem.times[0]) for speed in (1.0, 0.45, 0.2)),
    )


def placed_on_mixed_kinds(job: Workload, time_limit: float) -> Row:
    """Places the graph on 8 devices of 3 kinds, contiguously."""
    began, wall = cpu_seconds(), time.perf_counter()
    found = contiguous(mixed_kinds(job), out_of_time=lambda: time.perf_counter() >= wall + time_limit)
    gap = found.objective / found.bound - 1
    return Row(
        workload="generated: encoder on 8 devices of 3 kinds", num_nodes=len(job.nodes), mode="contiguous",
        objective=found.objective, bound=found.bound, gap=gap, outcome="proven" if gap <= 1e-3 else "feasible",
        bound_name=found.bound_name, cpu_seconds=cpu_seconds() - began, wall_seconds=time.perf_counter() - wall,
        expert=None, one_accelerator=math.fsum(node.accelerator_time for node in job.nodes) / found.objective,
    )


def rows(directory: Path | None, time_limit: float) -> Iterator[Row]:
    """All placements, one after the other."""
    files = sorted(directory.glob("*_inference.json")) + sorted(directory.glob("*_training.json")) if directory else []
    for path in files:
        job = load_workload(path)
        expert = expert_load(job, path.with_name(f"{path.stem}_expert.json"))
        for mode in ("contiguous", "non-contiguous"):
            yield placed(path.stem, job, mode=mode, time_limit=time_limit, expert=expert)
    generated = {
        "encoder, training": training(transformer(34, **DEVICES)),
        "encoder, training, dear transfers": training(transformer(34, cost=8.0, **DEVICES)),
        "branches, training": training(inception(11, (3, 7, 9, 5), **DEVICES)),
    }
    for name, job in generated.items():
        yield placed(f"generated: {name}", job, mode="contiguous", time_limit=time_limit, expert=None)
    more = {
        "four chains of 40": lstm_grid(4, 40, accelerators=4, cpus=0),
        "four chains of 375": lstm_grid(4, 375, **DEVICES),
        "long encoder, training": training(transformer(60, **DEVICES)),
    }
    for name, job in more.items():
        for mode in ("contiguous", "non-contiguous"):
            yield placed(f"generated: {name}", job, mode=mode, time_limit=time_limit, expert=None)
    yield placed_on_mixed_kinds(transformer(114, accelerators=3), time_limit)


def main() -> None:
    """Prints the figures, as a table or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path, nargs="?", help="of workloads")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each placement")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    found = list(rows(options.directory, options.time_limit))
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
        return
    shown = [
        [
            row.workload, row.num_nodes, row.mode, f"{row.objective:.3f}", f"{row.bound:.3f}", f"{100 * row.gap:.2f} %",
            row.outcome, f"{row.cpu_seconds:.1f}", f"{row.wall_seconds:.1f}",
            f"{row.expert:.3f}x" if row.expert else "-", f"{row.one_accelerator:.2f}x",
        ]
        for row in found
    ]
    print(tabulate(shown, headers=[
        "workload", "nodes", "mode", "max load", "bound", "gap", "outcome", "CPU s", "wall s", "expert / ours",
        "one accelerator / ours",
    ], disable_numparse=True))


if __name__ == "__main__":
    main()
