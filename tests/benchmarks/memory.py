"""Predicted against measured peak memory in training on the processor, stage by stage.

    python -m tests.benchmarks.memory [--json] [--models gpt2,vit] [--optimizers sgd,adamw] [--microbatches 1,4]
                                      [--stages 1] [--schedule gpipe] [--infer] [--recompute] [--stage-dtype float16]

Random weights, real depth, reduced width.  GPipe keeps all micro-batches in flight.  Measured as ``autopart run`` does:
the bytes of all tensors alive, over two steps; one stage runs in this process, several in processes of their own.
Goal: within 5 %, never more than 2 % under.  Beside each prediction stands the plain sum of its terms, as if all their
peaks were at one time (the baseline).  With --stage-dtype the model is in bfloat16, its stages compute in that type.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist

from autopart import modelsource, planning, profiling, running, verbs
from autopart.program import Program
from autopart.schema.graph import Graph
from autopart.schema.job import Job, Optimizer, ScheduleName
from autopart.schema.plan import Plan
from autopart.schema.problem import Candidate
from autopart.schema.profile import KindProfile, Profile

MODELS = ("gpt2", "resnet50", "llama", "vit")
FOLDER = Path(__file__).parent / "memorymodels"
SAMPLES = 2
"""of a micro-batch"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One stage of one run."""

    model: str
    optimizer: str
    num_microbatches: int
    num_stages: int
    stage: int
    predicted_bytes: int
    measured_bytes: int
    error: float
    """predicted / measured - 1"""
    error_of_sum: float
    """of the sum of the terms"""


def rows(
    model: str, optimizer: Optimizer, count: int, num_stages: int, schedule: ScheduleName | None, *, training: bool,
    recompute: bool = False, stage_dtype: str = "",
) -> list[Row]:  # fmt: skip
    """Plans and runs one case."""
    text = str(FOLDER / f"{model}.py")
    dtype = "bfloat16" if stage_dtype else None
    source = modelsource.load(text, dtype=dtype)
    program = verbs.trace_source(modelsource.with_batch(source, SAMPLES), training=training)
    graph = program.graph
    job = Job(
        mode="train" if training else "infer", batch=SAMPLES * count, microbatches=count, optimizer=optimizer,
        schedule=schedule, stages=num_stages, method="even", recompute="always" if recompute else "never",
        dtype=dtype, stage_dtype="auto" if stage_dtype else "keep",
    )  # fmt: skip
    cluster = profiling.read_cluster(",".join(f"cpu:{index}" for index in range(num_stages)))
    candidate = Candidate(num_microbatches=count, graph=graph, profile=_equal_times(graph, stage_dtype))
    plan = planning.plan((candidate,), cluster, job)
    if num_stages == 1:
        measured = [alone_bytes(plan, program, modelsource.with_batch(source, SAMPLES * count))]
    else:
        measurement = running.run(plan, text, steps=1, warmup=2, single=False)
        measured = [stage.peak_bytes for stage in measurement.stages]
    return [
        Row(
            model=model, optimizer=optimizer, num_microbatches=count, num_stages=num_stages, stage=planned.index,
            predicted_bytes=planned.peak_bytes, measured_bytes=num_bytes, error=planned.peak_bytes / num_bytes - 1,
            error_of_sum=(planned.peak_bytes + planned.memory.not_at_once) / num_bytes - 1,
        )
        for planned, num_bytes in zip(plan.stages, measured, strict=True)
    ]  # fmt: skip


def alone_bytes(plan: Plan, program: Program, source: modelsource.Source) -> int:
    """The peak of two steps of a plan of one stage."""
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    pipeline = running.DistributedPipeline(
        program, plan, 0, loss_fn=source.loss_fn, optimizer=plan.job.optimizer, joins_outputs=False
    )
    meter = running.meter_for(torch.device("cpu"), pipeline.weights().values(), warmup=2)
    for _ in range(2):
        pipeline.step(*source.args, target=source.targets, **source.kwargs)
        meter.observe()
    return meter.peak_bytes()


def _equal_times(graph: Graph, stage_dtype: str = "") -> Profile:
    """Time does not matter here."""
    seconds = (1.0,) * len(graph.layers)
    kind = KindProfile(
        kind="cpu-1t", origin="estimated", basis="equal times", forward_seconds=seconds, backward_seconds=seconds,
        optimizer_seconds=seconds, spread=seconds, dtype=stage_dtype,
    )
    return Profile(
        fingerprint=graph.fingerprint, training=graph.training, batch_size=graph.batch_size, kinds=(kind,)
    )


def _print(row: Row) -> None:
    print(
        f"{row.model:9} {row.optimizer:6} {row.num_microbatches:2} micro-batches  stage {row.stage} of {row.num_stages}"
        f"  predicted {row.predicted_bytes / 1e6:7.1f} MB  measured {row.measured_bytes / 1e6:7.1f} MB"
        f"  error {row.error:+7.2%}  (sum of terms {row.error_of_sum:+.1%})",
        flush=True,
    )


def main() -> None:
    """Prints a line per stage, or one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--optimizers", default="sgd,adamw")
    parser.add_argument("--microbatches", default="1,4")
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--schedule", choices=("gpipe", "1f1b"), default="gpipe")
    parser.add_argument("--infer", action="store_true", help="inference instead of training")
    parser.add_argument("--recompute", action="store_true", help="run every layer again in the backward")
    parser.add_argument("--stage-dtype", choices=("float16", "float32"), default="", help="of a model in bfloat16")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    optimizers = ["none"] if options.infer else options.optimizers.split(",")
    found: list[Row] = []
    for model, optimizer, count in product(options.models.split(","), optimizers, options.microbatches.split(",")):
        found += rows(
            model, cast("Optimizer", optimizer), int(count), options.stages, options.schedule,
            training=not options.infer, recompute=options.recompute, stage_dtype=options.stage_dtype,
        )  # fmt: skip
        if not options.json:
            for row in found[-options.stages :]:
                _print(row)
    errors = [row.error for row in found]
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
    else:
        print(f"{len(found)} stages: errors from {min(errors):+.2%} to {max(errors):+.2%}")


if __name__ == "__main__":
    main()
