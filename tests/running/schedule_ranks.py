"""What tests/running/test_schedules.py starts: ``python -m tests.running.schedule_ranks DIRECTORY``.

One process imports torch, traces the models and forks the ranks of a world of two, then those of a world of four.  Each
rank compares its gradients with those of the whole model, which it computes by itself.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from autopart.program import Program
from autopart.running.distributed import DistributedPipeline
from autopart.schema.job import ScheduleName
from autopart.tracing import trace
from tests.running.forked import fork_worlds, relative
from tests.running.handmade import make_plan

NUM_MICROBATCHES, MICROBATCH, WIDTH, NUM_BLOCKS = 4, 2, 8, 7


@dataclass(frozen=True)
class Case:
    schedule: ScheduleName
    ranks: tuple[int, ...]
    model: str
    num_microbatches: int = NUM_MICROBATCHES
    training: bool = True
    prefetch: int = 0

    @property
    def name(self) -> str:
        mode = "train" if self.training else "infer"
        placed = "".join(str(rank) for rank in self.ranks)
        early = f" prefetch {self.prefetch}" if self.prefetch else ""
        return f"{mode} {self.schedule} {placed} {self.model} {self.num_microbatches}{early}"


MODELS = ("plain", "skip", "tied", "both")
PLACEMENTS: tuple[tuple[ScheduleName, tuple[int, ...]], ...] = (
    ("gpipe", (0, 1)), ("gpipe", (0, 1, 0, 1)),
    ("1f1b", (0, 1)), ("1f1b", (0, 0, 1)), ("1f1b", (0, 1, 0, 1)),
    ("interleaved", (0, 1)), ("interleaved", (0, 1, 0, 1)), ("interleaved", (0, 0, 1)), ("interleaved", (0, 1, 0)),
    ("looped-bfs", (0, 1, 0, 1)),
    ("zero-bubble", (0, 1)), ("zero-bubble", (0, 1, 0, 1)), ("zero-bubble", (0, 1, 1, 0)), ("zero-bubble", (0, 0, 1)),
)  # fmt: skip
CASES = {
    2: (
        *(Case(schedule, ranks, "both") for schedule, ranks in PLACEMENTS),
        *(Case(schedule, (0, 1, 0, 1), model) for schedule in ("1f1b", "interleaved", "zero-bubble")
          for model in MODELS if model != "both"),
        Case("interleaved", (0, 1, 0, 1), "plain", 5),  # two rounds do not divide it: our own table
        *(Case("gpipe", ranks, "skip", training=False) for ranks in ((0, 1), (0, 1, 0, 1), (0, 1, 1, 0))),
        *(Case(schedule, ranks, "skip", prefetch=early) for early, (schedule, ranks) in zip(
            (1, 3, 99, 2, 99, 1, 5, 99, 2, 4, 99, 1, 3, 99), PLACEMENTS, strict=True)),
        Case("gpipe", (0, 1, 1, 0), "skip", training=False, prefetch=99),
    ),
    4: (
        *(Case(schedule, ranks, "both") for schedule in ("gpipe", "1f1b", "interleaved", "looped-bfs", "zero-bubble")
          for ranks in ((0, 1, 2, 3), (0, 1, 2, 3) * 2)),
        Case("interleaved", (0, 1, 2, 3, 0, 1), "tied"), Case("zero-bubble", (0, 1, 2, 3, 3, 2, 1, 0), "tied"),
    ),
}  # fmt: skip


class Blocks(nn.Module):
    """Residual blocks; ``skip``: the first value is used again at the end, ``tied``: the head is the embedding.

    What is right with both at once is right with either; that it is with neither is looked at for some schedules.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.skips = kind in ("skip", "both")
        self.embed = nn.Embedding(17, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(NUM_BLOCKS))
        self.head = nn.Linear(WIDTH, 17, bias=False)
        if kind in ("tied", "both"):
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        start = value = self.embed(tokens)
        for block in self.blocks:
            value = value + torch.tanh(block(value))
        result: torch.Tensor = self.head(value * start if self.skips else value)
        return result


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def cuts_of(program: Program, num_stages: int) -> tuple[int, ...]:
    legal = sorted(program.graph.legal_cuts)
    return tuple(legal[(index + 1) * len(legal) // num_stages - 1] for index in range(num_stages - 1))


@cache
def traced(kind: str, training: bool) -> Program:
    """Made before the ranks are forked, and given new weights for every case."""
    return trace(Blocks(kind), (torch.zeros(MICROBATCH, 3, dtype=torch.long),), training=training)


def error_of(case: Case, rank: int) -> float:
    """The largest relative error of this rank's gradients and loss after two steps (of its output in inference)."""
    torch.manual_seed(5)
    program, twin = traced(case.model, case.training), Blocks(case.model)
    program.module.load_state_dict(twin.state_dict())
    program.module.zero_grad()
    tokens, target = (torch.randint(0, 17, (MICROBATCH * case.num_microbatches, 3)) for _ in range(2))
    plan = make_plan(
        program.graph, cuts_of(program, len(case.ranks)), num_microbatches=case.num_microbatches,
        mode="train" if case.training else "infer", schedule=case.schedule, ranks=case.ranks,
    )
    pipeline = DistributedPipeline(program, plan, rank, loss_fn=loss_of, prefetch=case.prefetch)
    assert not pipeline.notes or not case.prefetch, pipeline.notes
    if not case.training:
        output = pipeline.step(tokens)
        assert (output is not None) == (plan.ranks[-1] == rank)
        return 0.0 if output is None else relative(output, twin.eval()(tokens))
    errors = []
    for _ in range(2):
        found = pipeline.step(tokens, target=target)
        loss = loss_of(twin(tokens), target)
        torch.autograd.backward(loss)
        errors += [] if found is None else [relative(found, loss)]
    theirs = dict(twin.named_parameters(remove_duplicate=False))
    for name, weight in pipeline.weights().items():
        assert weight.grad is not None, name
        assert theirs[name].grad is not None
        errors.append(relative(weight.grad, theirs[name].grad))
    return max(errors)


def main(directory: Path) -> None:
    for case in (case for cases in CASES.values() for case in cases):
        traced(case.model, case.training)
    fork_worlds(directory, CASES, error_of)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
