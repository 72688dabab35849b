"""What crosses the cuts of a plan, and by which codec."""

from __future__ import annotations

from collections.abc import Callable

from autopart.compression import Crossing, Traffic, crossings
from autopart.running.stages import spans
from autopart.schema.codec import CodecName
from autopart.schema.graph import Graph
from autopart.schema.plan import Plan

__all__ = ["CutCrossings", "codec_of", "cut_crossings"]

CutCrossings = tuple[Crossing, ...] | None
"""of every value, in the order of ``graph.crossing``; None: nothing is sent, both stages are on one device"""


def codec_of(plan: Plan, from_stage: int, compress: CodecName | None) -> Callable[[str], CodecName]:
    """The codec of every value that leaves a stage, by name: ``compress``, or what the plan says if that is None."""
    planned: dict[str, CodecName] = {
        each.tensor: each.codec for each in plan.transfers if each.from_stage == from_stage
    }
    return lambda name: planned.get(name, "none") if compress is None else compress


def cut_crossings(
    plan: Plan, graph: Graph, traffic: Traffic, compress: CodecName | None = None
) -> tuple[CutCrossings, ...]:
    """How values cross the cut after every stage but the last.

    Args:
        plan: of the model.
        graph: of one micro-batch.
        traffic: counts what is sent.
        compress: a codec for all cuts instead of the plan's.
    """
    ranks, ends = plan.ranks, [last for _, last in spans(plan, graph)]
    return tuple(
        crossings(graph, end, codec_of(plan, stage, compress), traffic, plan.schedule.num_microbatches)
        if ranks[stage] != ranks[stage + 1] else None
        for stage, end in enumerate(ends[:-1])
    )
