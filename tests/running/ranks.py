"""What tests/running/test_distributed.py starts: ``python -m tests.running.ranks DIRECTORY``.

One process imports torch and what tracing needs, which takes longer than the cases, and forks the ranks.
"""

from __future__ import annotations

import sys
import weakref
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.running import DistributedPipeline
from autopart.schema.job import Optimizer, ScheduleName
from tests.running.forked import fork_ranks
from tests.running.handmade import Skipping, make_plan, skipping_batch, skipping_loss, trace_skipping

BATCH, NUM_MICROBATCHES, CUTS = 8, 4, (2, 4)
WORLD = len(CUTS) + 1


def seeded(seed: int) -> Skipping:
    torch.manual_seed(seed)
    return Skipping()


def train(rank: int, schedule: ScheduleName, optimizer: Optimizer) -> dict[str, Any]:
    """Two steps.  Every rank starts from weights of its own, so tied copies are equal only if they are made so."""
    program = trace_skipping(seeded(rank), BATCH, NUM_MICROBATCHES, training=True)
    plan = make_plan(
        program.graph, CUTS, num_microbatches=NUM_MICROBATCHES, mode="train", schedule=schedule, optimizer=optimizer
    )
    args, targets = skipping_batch(BATCH)
    pipeline = DistributedPipeline(program, plan, rank, loss_fn=skipping_loss, optimizer=optimizer)
    losses = [pipeline.step(*args, target=targets) for _ in range(2)]
    weights = pipeline.weights()
    lap = pipeline.stopwatch.take()
    return {
        "losses": losses,
        "weights": {name: weight.detach().clone() for name, weight in weights.items()},
        "gradients": {name: weight.grad for name, weight in weights.items() if weight.grad is not None},
        "seconds": (lap.forward_seconds, lap.backward_seconds, lap.optimizer_seconds),
        "notes": pipeline.notes,
    }


def infer(rank: int) -> dict[str, Any]:
    program = trace_skipping(seeded(0).eval(), BATCH, NUM_MICROBATCHES, training=False)
    plan = make_plan(program.graph, CUTS, num_microbatches=NUM_MICROBATCHES)
    pipeline = DistributedPipeline(program, plan, rank)
    args, _ = skipping_batch(BATCH)
    made: list[weakref.ref[torch.Tensor]] = []
    last: Any = pipeline._stages[-1].submod
    last.register_forward_hook(lambda _, __, outputs: made.extend(weakref.ref(each) for each in outputs))
    outputs = [pipeline.step(*args) for _ in range(2)]
    return {"outputs": outputs, "made": len(made), "alive": sum(each() is not None for each in made)}


def other_plan(rank: int) -> str:
    """What is said if the last rank has a plan of its own."""
    program = trace_skipping(seeded(0).eval(), BATCH, NUM_MICROBATCHES, training=False)
    plan = make_plan(program.graph, (3, 4) if rank == 2 else CUTS, num_microbatches=NUM_MICROBATCHES)
    try:
        DistributedPipeline(program, plan, rank)
    except RunError as error:
        return str(error)
    return ""


def main(directory: Path, rank: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    found = {
        "gpipe": train(rank, "gpipe", "none"),
        "1f1b": train(rank, "1f1b", "none"),
        "adamw": train(rank, "1f1b", "adamw"),
        "infer": infer(rank),
        "other plan": other_plan(rank),
    }
    torch.save(found, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    trace_skipping(seeded(0), BATCH, NUM_MICROBATCHES, training=True)  # imports what every rank's own traces need
    sys.exit(fork_ranks(WORLD, partial(main, Path(sys.argv[1]))))
