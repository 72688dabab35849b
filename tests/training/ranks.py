"""Two gloo ranks for tests/training/test_ranks.py: ``python -m tests.training.ranks DIRECTORY``.

The imports take longer than the work, so one process does them and forks, before torch has started any thread (which
importing ``tests.running.forked`` sees to).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from autopart import running
from autopart.errors import RunError
from autopart.program import Program
from autopart.schema.job import Optimizer
from autopart.schema.plan import Plan
from autopart.schema.training import Recipe, StepRecord
from autopart.training.gradients import across_ranks
from autopart.training.loop import Task, train_part
from autopart.training.part import part_of
from autopart.training.trainer import ScaledLoss, Trainer
from tests.running.forked import fork_ranks
from tests.training.models import MODELS, NUM_MICROBATCHES, data, loss_fn, plan_of, program_of, seeded, source_of

REPLICAS = Recipe(
    steps=6, optimizer="adamw", learning_rate=0.01, shuffle=False, clip=0.3, accumulate=2, checkpoint_every=3
)
WORLD = 2
PROGRAMS: dict[str, Program] = {}
"""traced before the fork; each is trained once, since what a rank does not need is dropped"""
FIFTY = Recipe(steps=50, optimizer="adamw", learning_rate=0.01, shuffle=False, clip=0.3, lr_schedule="linear")
PIECES = Recipe(
    steps=6, optimizer="momentum", learning_rate=0.1, shuffle=False, clip=0.3, accumulate=2, checkpoint_every=3
)
LONGER = replace(PIECES, steps=9)


def train(directory: Path, rank: int, name: str, recipe: Recipe, given: object = None) -> list[StepRecord]:
    """Trains a model on both ranks; its checkpoints go to a folder of its name."""
    program = PROGRAMS[name]
    make: Callable[[Program, int, Optimizer], Plan] = PLANS.get(name.rpartition(" then ")[2], plan_of)
    plan = make(program, WORLD, recipe.optimizer)
    device = torch.device("cpu")
    loss, stopwatch = ScaledLoss(loss_fn, recipe.precision, device), running.stopwatch_for(device)
    pipeline = running.DistributedPipeline(program, plan, rank, loss_fn=loss, stopwatch=stopwatch)
    part = part_of(program, plan, pipeline.weights(), device, rank, pipeline.parted)
    running.drop_weights(program.module, keep=pipeline.user_weights() | set(part.unused))
    trainer = Trainer(pipeline, part, recipe, loss, exchange=across_ranks(device), stopwatch=stopwatch)
    seen: list[StepRecord] = []

    def opened() -> object:
        return given or data()

    task = Task(
        plan=plan, recipe=recipe, source=source_of(program.module), opened=opened, data_name="",
        resume=recipe.steps == 9, checkpoints=directory / f"{name.removesuffix(' again')}-{recipe.optimizer}",
    )  # fmt: skip
    stopped = train_part(trainer, part, task, done=seen.append, stop=lambda: rank == 0 and len(seen) == 49)
    assert stopped == (len(seen) == 50), "stopped with the step after the wish, by all ranks"
    return seen


def together(program: Program, world: int, optimizer: Optimizer, *, data: int = 1) -> Plan:
    """The whole model on all devices, each with its part of every layer, or of the samples of every micro-batch."""
    plan, devices = plan_of(program, 1, optimizer), plan_of(program, world).cluster.devices
    names = tuple(device.name for device in devices)
    stage = replace(plan.stages[0], devices=names, data_parallel=data, tensor_parallel=world // data, recompute=True)
    return replace(
        plan, stages=(stage,), job=replace(plan.job, batch=data * plan.job.batch),
        cluster=replace(plan.cluster, devices=devices),
    )  # fmt: skip


def replicas(program: Program, world: int, optimizer: Optimizer) -> Plan:
    """As ``together``, of replicas only."""
    return together(program, world, optimizer, data=world)


PLANS: dict[str, Callable[[Program, int, Optimizer], Plan]] = {
    "replicas": replicas, "shared": together, "shared again": together,
}


SWITCHES = (("shared", "more"), ("shared", "replicas"), ("more", "shared"), ("more", "replicas"))
"""names of a plan whose checkpoint is gone on from, and of the other plan that does; "more" is two stages"""


def switched(directory: Path, rank: int, before: str, after: str) -> list[float | None]:
    """The losses after the sixth step, under another plan than that of the first six."""
    name = f"{before} then {after}"
    if rank == 0:
        shutil.copytree(directory / f"{before}-momentum", directory / f"{name}-momentum")
    dist.barrier()
    return [each.loss for each in train(directory, rank, name, LONGER)]


def misread(directory: Path, rank: int) -> str:
    """What a training says whose data are not the same in both processes, as if they were shuffled by chance."""
    tokens, labels = data()
    samples = [(tokens[index - rank], labels[index - rank]) for index in range(len(tokens))]
    try:
        train(directory, rank, "other", PIECES, samples)
    except RunError as error:
        return str(error)
    return ""


def main(directory: Path, rank: int) -> None:
    """All cases, one after the other."""
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=200),
    )
    pieces = train(directory, rank, "more", PIECES)
    copies = train(directory, rank, "replicas", REPLICAS)
    shared = train(directory, rank, "shared", PIECES)
    switches = {pair: switched(directory, rank, *pair) for pair in SWITCHES}
    shared += train(directory, rank, "shared again", LONGER)
    losses = {name: [each.loss for each in train(directory, rank, name, FIFTY)] for name in MODELS}
    found = {
        "misread": misread(directory, rank), "losses": losses, "replicas": [each.loss for each in copies],
        "pieces": [each.loss for each in pieces], "norms": [each.gradient_norm for each in pieces],
        "switches": switches, "shared": [each.loss for each in shared],
        "shared norms": [each.gradient_norm for each in shared],
    }  # fmt: skip
    torch.save(found, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


def fork(directory: Path) -> int:
    """Runs the ranks as children; how many failed."""
    torch.set_num_threads(1)
    more = {"more": program_of(seeded("tied")), "replicas": program_of(seeded("tied"), NUM_MICROBATCHES * 2)}
    more |= {name: program_of(seeded("tied", seed)) for seed, name in enumerate(("shared", "shared again"))}
    shares = {"replicas": NUM_MICROBATCHES * 2}
    more |= {
        f"{before} then {after}": program_of(seeded("tied", 5), shares.get(after, NUM_MICROBATCHES))
        for before, after in SWITCHES
    }
    more["other"] = program_of(seeded("chain"))
    PROGRAMS.update({name: program_of(seeded(name)) for name in MODELS} | more)
    return fork_ranks(WORLD, partial(main, directory))


if __name__ == "__main__":
    sys.exit(fork(Path(sys.argv[1])))
