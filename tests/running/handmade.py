"""Small models, and plans written by hand, for the tests of this room."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from autopart.program import Program
from autopart.schema.device import Cluster, Device, Link
from autopart.schema.graph import Graph
from autopart.schema.job import Job, Mode, Optimizer, ScheduleName
from autopart.schema.plan import Memory, ModelSummary, Origin, Plan, Prediction, Proof, Schedule, Stage
from autopart.tracing import trace


class Skipping(nn.Module):
    """A chain with a value that skips a stage, a tied weight, an integer that crosses, and a buffer that is written."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 8)
        self.lower = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.inner = nn.Linear(8, 8)
        self.upper = nn.Linear(8, 8)
        self.head = nn.Linear(8, 17, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        start = self.embed(tokens).mean(1)
        middle = self.norm(self.lower(start).relu())
        end = self.upper(torch.tanh(self.inner(middle)).t().contiguous().t() + start)
        return {"scores": self.head(end * scale), "kept": tokens + 1}


def skipping_loss(output: dict[str, torch.Tensor], labels: torch.Tensor, weight: float) -> torch.Tensor:
    return weight * nn.functional.cross_entropy(output["scores"], labels)


def skipping_batch(batch: int) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, float]]:
    """Inputs, one of them not batched, and targets, one of them no tensor."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 17, (batch, 5), generator=generator)
    labels = torch.randint(0, 17, (batch,), generator=generator)
    return (tokens, torch.rand(8, generator=generator)), (labels, 0.5)


def trace_skipping(model: nn.Module, batch: int, num_microbatches: int, *, training: bool) -> Program:
    (tokens, scale), _ = skipping_batch(batch)
    return trace(model, (tokens[: batch // num_microbatches], scale), training=training)


def make_plan(
    graph: Graph,
    cuts: tuple[int, ...],
    *,
    num_microbatches: int,
    mode: Mode = "infer",
    schedule: ScheduleName = "gpipe",
    optimizer: Optimizer = "none",
    speeds: tuple[float, ...] = (),
    ranks: tuple[int, ...] = (),
) -> Plan:
    """A plan that cuts the graph at these boundaries; ``ranks``: the cpu device of every stage, () one for each."""
    ends = (0, *cuts, len(graph.layers))
    names = [layer.name for layer in graph.layers]
    num_stages = len(ends) - 1
    placed = ranks or tuple(range(num_stages))
    memory = Memory(parameters=1, gradients=0, optimizer=0, activations=0, workspace=0, communication=0)
    stages = tuple(
        Stage(
            index=index, devices=(f"cpu:{placed[index]}",), layers=tuple(names[a:b]), parameter_bytes=1, peak_bytes=1,
            capacity_bytes=2**40, forward_seconds=1e-3, backward_seconds=0.0, optimizer_seconds=0.0,
            utilisation=0.5, memory=memory,
        )
        for index, (a, b) in enumerate(itertools.pairwise(ends))
    )
    batch = num_microbatches * graph.batch_size
    return Plan(
        verdict="by hand",
        model=ModelSummary(
            name=graph.model, fingerprint=graph.fingerprint, num_layers=len(names), num_parameters=graph.num_parameters
        ),
        job=Job(mode=mode, batch=batch, optimizer=optimizer),
        cluster=Cluster(devices=cpu_devices(speeds or (1.0,) * (max(placed) + 1)), links=(_link(),)),
        stages=stages,
        transfers=(),
        schedule=Schedule(name=schedule, num_microbatches=num_microbatches, warmup=(0,) * num_stages),
        prediction=Prediction(
            step_seconds=1e-2, latency_seconds=1e-2, throughput_per_second=batch / 1e-2, bubble_fraction=0.0,
            cost_per_million=None,
        ),
        proof=Proof(
            objective_seconds=1e-2, bound_seconds=1e-2, bound="none", gap=0.0, outcome="feasible", solver="none",
            solve_seconds=0.0,
        ),
        baselines=(),
        excluded=(),
        warnings=(),
        origin=Origin(profile="estimated", bases=(), links=()),
    )


def reference(
    model: nn.Module, args: tuple[Any, ...], targets: tuple[Any, ...], num_microbatches: int
) -> torch.Tensor:
    """Loss of the unsplit model, micro-batch by micro-batch as its batch norm demands; gradients stay in the model."""
    model.train()
    total = torch.zeros(())
    rows = args[0].chunk(num_microbatches), targets[0].chunk(num_microbatches)
    for tokens, labels in zip(*rows, strict=True):
        loss = skipping_loss(model(tokens, *args[1:]), labels, *targets[1:]) / num_microbatches
        torch.autograd.backward(loss)
        total += loss.detach()
    return total


def cpu_devices(speeds: tuple[float, ...]) -> tuple[Device, ...]:
    return tuple(
        Device(
            name=f"cpu:{index}", kind="cpu-1t", node="here", memory_bytes=2**40, memory_origin="test", backend="cpu",
            torch_device="cpu", num_threads=1, speed=speed,
        )
        for index, speed in enumerate(speeds)
    )


def _link() -> Link:
    return Link(
        level="node", ends=("*", "*"), latency_seconds=0.0, bandwidth_bytes_per_second=1e9, origin="assumed", source=""
    )
