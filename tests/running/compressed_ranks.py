"""What tests/running/test_compressed_run.py starts: ``python -m tests.running.compressed_ranks DIRECTORY``.

The models are traced once, then two gloo ranks are forked; each compares its gradients with those of the same plan
and codec in one process.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from autopart.program import Program
from autopart.running import LocalPipeline
from autopart.running.distributed import DistributedPipeline
from autopart.schema.codec import CodecName
from autopart.schema.device import Link
from autopart.schema.job import ScheduleName
from autopart.schema.plan import Transfer
from autopart.tracing import trace
from tests.running.forked import fork_worlds, relative
from tests.running.handmade import make_plan

NUM_MICROBATCHES, MICROBATCH, WIDTH, NUM_STEPS = 4, 2, 128, 3


@dataclass(frozen=True)
class Case:
    schedule: ScheduleName
    ranks: tuple[int, ...]
    compress: CodecName | None
    training: bool = True
    planned: CodecName = "none"
    """codec of every transfer of the plan"""
    limited: bool = False
    """over a link of 1 ms and 100 MB/s"""
    dtypes: tuple[str, ...] = ()
    """of every stage, of a model in bfloat16; () of one in float32"""

    @property
    def name(self) -> str:
        placed = "".join(map(str, self.ranks))
        flags = "".join(word for word, flag in ((" limited", self.limited), (" infer", not self.training)) if flag)
        return " ".join((self.schedule, placed, str(self.compress), f"{self.planned}{flags}", *self.dtypes)).rstrip()


CASES = (
    Case("1f1b", (0, 1), "fp16"),
    Case("1f1b", (0, 1), None, planned="int8"),
    Case("1f1b", (0, 1), "none", planned="int8"),
    Case("zero-bubble", (0, 1, 1, 0), "topk"),
    Case("gpipe", (0, 1), "int8", training=False),
    Case("1f1b", (0, 1), None, limited=True),
    Case("gpipe", (0, 1), "int8", limited=True),
    Case("zero-bubble", (0, 1, 0, 1), "int8", limited=True),
    Case("gpipe", (0, 1, 0, 1), None, training=False, limited=True),
    Case("1f1b", (0, 1), None, dtypes=("", "float32")),
    Case("zero-bubble", (0, 1, 1, 0), None, dtypes=("float32", "", "", "float32")),
    Case("gpipe", (0, 1), "int8", training=False, dtypes=("float16", "")),
    Case("gpipe", (0, 1), None, training=False, dtypes=("float16", "")),
)


class Residual(nn.Module):
    """Blocks, a value that skips some of them, and a table that crosses and has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.table = nn.Buffer(torch.rand(WIDTH))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        start = value = self.enter(value)
        scale = self.table.cos()
        for block in self.blocks:
            value = value + torch.tanh(block(value)) * scale
        result: torch.Tensor = value + start
        return result


def inputs_and_target(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    inputs, target = (
        torch.randn(MICROBATCH * NUM_MICROBATCHES, 3, WIDTH, generator=generator).to(dtype) for _ in range(2)
    )
    return inputs, target


@cache
def traced(training: bool, dtype: torch.dtype) -> tuple[Program, Program]:
    """Two models of equal weights."""
    torch.manual_seed(5)
    model, twin = Residual().to(dtype), Residual().to(dtype)
    twin.load_state_dict(model.state_dict())
    inputs, _ = inputs_and_target(dtype)
    one, other = (trace(each, (inputs[:MICROBATCH],), training=training) for each in (model, twin))
    return one, other


def error_of(case: Case, rank: int, directory: Path) -> dict[str, float]:
    dtype = torch.bfloat16 if case.dtypes else torch.float32
    programs, (inputs, target) = traced(case.training, dtype), inputs_and_target(dtype)
    for program in programs:
        program.module.zero_grad()
    graph = programs[0].graph
    legal = sorted(graph.legal_cuts)
    cuts = tuple(legal[(index + 1) * len(legal) // len(case.ranks) - 1] for index in range(len(case.ranks) - 1))
    plan = make_plan(
        graph, cuts, num_microbatches=NUM_MICROBATCHES, mode="train" if case.training else "infer",
        schedule=case.schedule, ranks=case.ranks,
    )
    transfers = tuple(
        Transfer(tensor=value.name, from_stage=stage, to_stage=stage + 1, bytes=value.bytes, seconds=0.0,
                 codec=case.planned)
        for stage, cut in enumerate(cuts) for value in graph.crossing(cut)
    )  # fmt: skip
    link = Link(level="node", ends=("*", "*"), latency_seconds=1e-3, bandwidth_bytes_per_second=1e8, origin="given",
                source="test")  # fmt: skip
    cluster = dataclasses.replace(plan.cluster, links=(link,))
    stages = tuple(
        dataclasses.replace(stage, dtype=dtype)
        for stage, dtype in zip(plan.stages, case.dtypes or ("",) * len(plan.stages), strict=True)
    )
    plan = dataclasses.replace(plan, transfers=transfers, cluster=cluster, stages=stages)
    loss = nn.functional.mse_loss
    limits = directory / f"links {case.name}" if case.limited else None
    ranks = DistributedPipeline(programs[0], plan, rank, loss_fn=loss, compress=case.compress, limits=limits)
    alone = LocalPipeline(programs[1], plan, loss_fn=loss, compress=case.compress)
    errors = []
    for _ in range(NUM_STEPS):
        found, expected = ((each.step(inputs, target=target) if case.training else each.step(inputs))
                           for each in (ranks, alone))  # fmt: skip
        errors += [] if found is None else [relative(found, expected)]
    theirs = dict(programs[1].module.named_parameters())
    for name, weight in ranks.weights().items() if case.training else ():
        if weight.requires_grad:
            assert weight.grad is not None, name
            errors.append(relative(weight.grad, theirs[name].grad))
    return {
        "error": max(errors, default=0.0), "sent": ranks.traffic.sent_bytes, "plain": ranks.traffic.plain_bytes,
        "sent alone": alone.traffic.sent_bytes, "plain alone": alone.traffic.plain_bytes,
    }


def main(directory: Path) -> None:
    for training, dtype in itertools.product((True, False), (torch.float32, torch.bfloat16)):
        traced(training, dtype)
    fork_worlds(directory, {2: CASES}, partial(error_of, directory=directory))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
