"""What tests/running/test_groups.py starts: ``python -m tests.running.group_ranks DIRECTORY``.

One process imports torch and forks the ranks of a world of two, then those of a world of four.  Every rank compares
losses, gradients, outputs and weights with those of the whole model, which it steps by itself.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from autopart.program import Program
from autopart.running import DistributedPipeline, make_optimizer
from autopart.running.dataparallel import GradientCodec
from autopart.running.mesh import seats
from autopart.schema.device import Cluster
from autopart.schema.job import Optimizer, ScheduleName
from autopart.schema.plan import Plan
from autopart.tracing import trace
from tests.running.forked import fork_worlds, largest, relative
from tests.running.groupmodels import MODELS, tokens_of
from tests.running.handmade import cpu_devices, make_plan

NUM_MICROBATCHES, SHARE = 4, 2


@dataclass(frozen=True)
class Case:
    groups: tuple[tuple[int, int], ...]
    """of every stage, replicas and devices that share its layers"""
    schedule: ScheduleName
    model: str
    optimizer: Optimizer = "none"
    codec: GradientCodec = "none"
    training: bool = True
    prefetch: int = 0
    recompute: bool = False

    @property
    def name(self) -> str:
        groups = "+".join(f"{data}x{tensor}" for data, tensor in self.groups)
        words = [self.schedule, self.model, self.optimizer, self.codec, "train" if self.training else "infer",
                 f"prefetch {self.prefetch}" if self.prefetch else "none",
                 "recompute" if self.recompute else "none"]  # fmt: skip
        return " ".join([groups, *(word for word in words if word != "none")])


SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble")
PAIRS = {"dp": ((2, 1), (2, 1)), "tp": ((1, 2), (1, 2))}
UNEQUAL: tuple[tuple[tuple[tuple[int, int], ...], ScheduleName], ...] = (
    (((1, 1), (2, 1), (1, 1)), "interleaved"), (((1, 1), (3, 1)), "gpipe"), (((2, 1), (1, 2)), "1f1b"),
    (((3, 1), (1, 1)), "looped-bfs"),
)  # fmt: skip
CASES = {
    2: (
        *(Case(((1, 2),), schedule, "blocks") for schedule in SCHEDULES),
        *(Case(((2, 1),), schedule, "blocks") for schedule in SCHEDULES if schedule != "zero-bubble"),
        *(Case(((1, 1), (1, 1)), schedule, "blocks", prefetch=2) for schedule in ("1f1b", "zero-bubble")),
        Case(((1, 1), (1, 1)), "gpipe", "blocks", training=False, prefetch=9),
        *(Case(((1, 2),), "1f1b", model) for model in MODELS if model != "blocks"),
        *(Case((group,), "1f1b", "blocks", "adamw") for group in ((1, 2), (2, 1))),
        Case(((2, 1),), "1f1b", "blocks", codec="fp16"),
        *(Case(((1, 1), (1, 1)), schedule, "blocks", recompute=True) for schedule in SCHEDULES),
        *(Case(((1, 2),), "1f1b", model, recompute=True) for model in ("fused", "channels", "dropout")),
        Case(((2, 1),), "1f1b", "fused", recompute=True),
    ),
    4: (
        *(Case(PAIRS["tp"], schedule, "blocks") for schedule in SCHEDULES),
        *(Case(PAIRS["dp"], schedule, "blocks") for schedule in SCHEDULES if schedule != "zero-bubble"),
        *(Case(PAIRS[kind], "1f1b", "blocks", "adamw") for kind in PAIRS),
        *(Case(PAIRS[kind], "gpipe", "blocks", training=False) for kind in PAIRS),
        Case(((2, 2),), "1f1b", "fused", "momentum"),
        Case(((1, 1), (1, 2), (1, 1)), "zero-bubble", "blocks"), Case(((1, 3), (1, 1)), "1f1b", "blocks"),
        Case(PAIRS["tp"], "1f1b", "fused"), Case(((1, 1),) * 4, "interleaved", "blocks", prefetch=1),
        *(Case(groups, schedule, "blocks") for groups, schedule in UNEQUAL),
        Case(((1, 1), (3, 1)), "gpipe", "blocks", training=False),
        Case(((1, 2), (2, 1)), "1f1b", "fused", recompute=True),
        Case(PAIRS["tp"], "zero-bubble", "fused", recompute=True), Case(((2, 2),), "1f1b", "fused", recompute=True),
    ),
}  # fmt: skip


def make_group_plan(program: Program, case: Case) -> Plan:
    num_stages, num_replicas = len(case.groups), max(data for data, _ in case.groups)
    legal = sorted(program.graph.legal_cuts)
    cuts = tuple(legal[(index + 1) * len(legal) // num_stages - 1] for index in range(num_stages - 1))
    plan = make_plan(
        program.graph, cuts, num_microbatches=NUM_MICROBATCHES, mode="train" if case.training else "infer",
        schedule=case.schedule, optimizer=case.optimizer,
    )
    names = iter(f"cpu:{number}" for number in range(64))
    stages = tuple(
        dataclasses.replace(
            stage, devices=tuple(next(names) for _ in range(data * tensor)), data_parallel=data, tensor_parallel=tensor,
            recompute=case.recompute,
        )
        for stage, (data, tensor) in zip(plan.stages, case.groups, strict=True)
    )
    devices = cpu_devices((1.0,) * sum(len(stage.devices) for stage in stages))
    return dataclasses.replace(
        plan, stages=stages, cluster=Cluster(devices=devices, links=plan.cluster.links),
        job=dataclasses.replace(plan.job, batch=plan.job.batch * num_replicas),
    )


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


@lru_cache
def traced(name: str, training: bool, num_samples: int = SHARE) -> Program:
    """Of one share; made before the ranks are forked, and given new weights for every case."""
    return trace(MODELS[name](), (tokens_of(num_samples, 0),), training=training)


def shares(case: Case) -> list[int]:
    """Samples of a micro-batch that the processes have."""
    most = max(data for data, _ in case.groups)
    return [SHARE * most // data for data, tensor in case.groups for _ in range(data * tensor)]


def twin_of(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]()


def figures_of(case: Case, rank: int) -> dict[str, float | str]:
    """Largest relative errors of this rank, after two steps; weights are equal only where they are made so."""
    plan, twin = make_group_plan(traced(case.model, case.training), case), twin_of(case.model, 0)
    program = traced(case.model, case.training, shares(case)[rank])
    program.module.load_state_dict(twin_of(case.model, 0 if seats(plan)[rank].is_first else rank).state_dict())
    program.module.zero_grad()
    batches = [tuple(tokens_of(plan.job.batch, seed + step) for seed in (1, 3)) for step in range(2)]
    pipeline = DistributedPipeline(
        program, plan, rank, loss_fn=loss_of, optimizer=case.optimizer, compress_gradients=case.codec,
        prefetch=case.prefetch,
    )
    found: dict[str, float | str] = {"notes": " ".join(pipeline.notes)}
    if not case.training:
        output = pipeline.step(batches[0][0])
        return found | ({} if output is None else {"output": relative(output, twin.eval()(batches[0][0]))})
    losses = [pipeline.step(tokens, target=target) for tokens, target in batches]
    expected = stepped(twin, batches, case.optimizer)
    theirs = dict(twin.named_parameters(remove_duplicate=False))
    held = theirs | dict(twin.named_buffers())
    least = 1e-2 * max(largest(weight.grad) for weight in theirs.values())  # some are 0 but for rounding
    gradients, weights = pipeline.whole_gradients().items(), pipeline.whole_weights().items()
    return found | {
        "losses": max(relative(*pair) for pair in zip(losses, expected, strict=True)) if losses[0] is not None else 0.0,
        "gradients": max(relative(gradient, theirs[name].grad, least) for name, gradient in gradients),
        "weights": max(relative(weight, held[name], 1e-2) for name, weight in weights if name in held),
        "num_gradients": len(gradients),
        "num_elements": sum(weight.numel() for weight in pipeline.weights().values()),
        "num_losses": sum(loss is not None for loss in losses),
    }


def stepped(
    model: nn.Module, batches: list[tuple[torch.Tensor, ...]], optimizer: Optimizer
) -> list[torch.Tensor]:
    """The losses of two steps of the whole model; without an optimizer gradients add up."""
    losses = []
    steps = make_optimizer(optimizer, list(model.parameters()))
    for tokens, target in batches:
        total = torch.zeros(())
        if steps is not None:
            steps.zero_grad()
        # batch normalisation sees shares
        pairs = list(zip(*(torch.split(each, SHARE) for each in (tokens, target)), strict=True))
        for each, labels in pairs:
            part = loss_of(model(each), labels) / len(pairs)
            torch.autograd.backward(part)
            total = total + part.detach()
        losses.append(total)
        if steps is not None:
            steps.step()
    return losses


def main(directory: Path) -> None:
    torch.set_default_dtype(torch.float64)  # no wrong sum can then pass for rounding
    for case in (case for cases in CASES.values() for case in cases):
        for num_samples in {SHARE, *shares(case)}:
            traced(case.model, case.training, num_samples)
    fork_worlds(directory, CASES, figures_of)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
