"""Boundaries between stages that differ in replicas: every sample goes to the replica that has it on the other side.

Values that are batched (by their first dimension) travel in slices, others whole from the first replica that a receiver
gets samples from.  Every replica's loss is a mean over its own samples, and replicas average their gradients; so what a
replica passes back is the mean's gradient times its number of replicas, and is scaled to that of the other side.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist

from autopart.errors import RunError
from autopart.running.cuts import codec_of
from autopart.running.mesh import samples_per_replica
from autopart.running.stages import spans
from autopart.schema.codec import CodecName
from autopart.schema.graph import Graph
from autopart.schema.plan import Plan

__all__ = ["check_dealing", "gradient_factor", "scaled"]

SLICED_CODECS = ("none", "fp16", "bf16")
"""whose code of some samples is a slice of the code of all"""

Form = tuple[tuple[int, ...], bool]
"""shape of a value, and whether it has a gradient"""


def gradient_factor(plan: Plan, stage: int) -> float:
    """What the gradients are multiplied with that a stage passes back."""
    return plan.stages[stage - 1].data_parallel / plan.stages[stage].data_parallel if stage else 1.0


def scaled(value: torch.Tensor, factor: float) -> torch.Tensor:
    """The same value, whose gradient is multiplied."""
    result: torch.Tensor = value if factor == 1.0 else _Scaled.apply(value, factor)  # type: ignore[no-untyped-call]
    return result


def check_dealing(plan: Plan, graph: Graph, process: int, compress: CodecName | None) -> None:
    """Refuses boundaries whose values cannot be dealt anew; collective, if stages differ in replicas.

    Which dimension of a value has the samples is seen from the traces of both sides, made at different sizes.

    Args:
        plan: of the model.
        graph: of this process, at the size of its share.
        process: this one.
        compress: a codec instead of the plan's.

    Raises:
        RunError: the graph is of another size, or a value is not batched by its first dimension, or has one gradient
            for several replicas, or travels in a code that cannot be sliced.
    """
    counts = [stage.data_parallel for stage in plan.stages]
    if graph.batch_size != samples_per_replica(plan, process):
        raise RunError(
            f"the model was traced at {graph.batch_size} samples, process {process} gets "
            f"{samples_per_replica(plan, process)} of every micro-batch; trace it at that size"
        )
    if len(set(counts)) == 1:
        return
    found: list[tuple[int, tuple[tuple[Form, ...], ...]]] = [(0, ())] * dist.get_world_size()
    dist.all_gather_object(found, (graph.batch_size, tuple(_forms(graph, last) for _, last in spans(plan, graph))))
    forms = dict(found)
    num_samples = plan.job.batch // plan.schedule.num_microbatches
    for stage, (before, after) in enumerate(itertools.pairwise(counts)):
        if before != after:
            ones, others = (forms[num_samples // count][stage] for count in (before, after))
            _check_forms(stage, ones, others, num_samples // before, num_samples // after)
            _check_codecs(plan, graph, stage, compress)


def _forms(graph: Graph, boundary: int) -> tuple[Form, ...]:
    return tuple((value.shape, value.differentiable) for value in graph.crossing(boundary))


def _check_forms(
    stage: int, ones: tuple[Form, ...], others: tuple[Form, ...], samples: int, other_samples: int
) -> None:
    for (shape, differentiable), (other, _) in zip(ones, others, strict=True):
        batched = shape[:1] == (samples,) and other == (other_samples, *shape[1:])
        alike = shape == other and samples not in shape[:1] and other_samples not in shape[:1] and not differentiable
        if not batched and not alike:
            raise RunError(
                f"a value of shape {shape} crosses from stage {stage} to {stage + 1}, which differ in replicas "
                f"({samples} and {other_samples} samples each), and its samples are not its first dimension (there it "
                f"has shape {other}); plan with --data-parallel 1, or for devices that stages can share evenly"
            )


def _check_codecs(plan: Plan, graph: Graph, stage: int, compress: CodecName | None) -> None:
    codec = codec_of(plan, stage, compress)
    for value in graph.crossing(spans(plan, graph)[stage][1]):
        if codec(value.name) not in SLICED_CODECS:
            raise RunError(
                f"stages {stage} and {stage + 1} differ in replicas, so {codec(value.name)}, whose code cannot be "
                f"sliced by samples, cannot be used between them; run with --compress fp16, or plan without"
            )


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * ctx.factor, None
