"""Small models that train, their data, and the plain torch loop that every training is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autopart.modelsource import Source
from autopart.program import Program
from autopart.schema.plan import Plan
from autopart.schema.training import Recipe
from autopart.tracing import trace
from autopart.training.rates import rate_share
from tests.running.handmade import make_plan

BATCH, NUM_MICROBATCHES, NUM_SAMPLES, WORDS = 8, 4, 40, 13


class Chain(nn.Module):
    """Layers one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.lower, self.inner, self.upper = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, WORDS)
        self.unused = nn.Linear(2, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.upper(self.inner(self.lower(self.embed(tokens).mean(1)).relu()).tanh())  # type: ignore[no-any-return]


class Skip(Chain):
    """A value skips the layers between."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        start = self.embed(tokens).mean(1)
        return self.upper(self.inner(self.lower(start).relu()).tanh() + start)  # type: ignore[no-any-return]


class Tied(Chain):
    """The first weight is the last one too."""

    def __init__(self) -> None:
        super().__init__()
        self.upper.weight = self.embed.weight


MODELS: dict[str, Callable[[], Chain]] = {"chain": Chain, "skip": Skip, "tied": Tied}


def seeded(name: str, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    return MODELS[name]()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, WORDS, (NUM_SAMPLES, 5), generator=generator)
    return tokens, tokens[:, 0]


def loss_fn(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, labels)


def source_of(model: nn.Module) -> Source:
    tokens, labels = data()
    inputs, targets = (tokens[:BATCH],), (labels[:BATCH],)
    return Source(model=model, args=inputs, kwargs={}, loss_fn=loss_fn, targets=targets, name="small", text="")


def program_of(model: nn.Module, num_parts: int = NUM_MICROBATCHES) -> Program:
    return trace(model, (data()[0][: BATCH // num_parts],), training=True)


def plan_of(program: Program, num_stages: int = 2, optimizer: Any = "adamw") -> Plan:
    cuts = sorted(program.graph.legal_cuts)
    chosen = tuple(cuts[(index * len(cuts)) // num_stages] for index in range(1, num_stages))
    return make_plan(
        program.graph, chosen, num_microbatches=NUM_MICROBATCHES, mode="train", schedule="1f1b", optimizer=optimizer
    )


def plain_losses(
    model: nn.Module, recipe: Recipe, optimizer: torch.optim.Optimizer, *, first: int = 1,
    autocast: torch.dtype | None = None,
) -> list[float]:
    """The losses of the unsplit model, whole batches at once, samples in their order, by torch's own means."""
    tokens, labels = data()
    full = optimizer.param_groups[0]["lr"]
    losses = []
    for step in range(first, recipe.steps + 1):
        optimizer.zero_grad()
        total = 0.0
        for part in range(recipe.accumulate):
            start = ((step - 1) * recipe.accumulate + part) * BATCH
            rows = torch.arange(start, start + BATCH) % NUM_SAMPLES
            with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
                loss = loss_fn(model(tokens[rows]), labels[rows]) / recipe.accumulate
            torch.autograd.backward(loss)
            total += loss.item()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.param_groups[0]["lr"] = full * rate_share(recipe, step)
        optimizer.step()
        losses.append(total)
    return losses
