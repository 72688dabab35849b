"""How long each layer of a stage takes where it runs: the stage's own graph, with a mark at the end of every layer."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import fx

from autopart.program import Program, Segment
from autopart.running.launching.records import RankResult
from autopart.running.mesh import seats
from autopart.running.stages import rank_stages, spans
from autopart.schema.graph import Value
from autopart.schema.plan import Plan

__all__ = ["layer_seconds", "with_layer_seconds"]

NUM_PASSES = 3
"""that count, after one that warms up"""


def with_layer_seconds(
    result: RankResult, program: Program, plan: Plan, *, weight: Callable[[str], torch.Tensor], device: torch.device,
    clock: Callable[[], float],
) -> RankResult:  # fmt: skip
    """A rank's result with the times of its stage's layers, or with a note why there are none.

    Of a process that runs several stages, or a part of one, nothing is taken.
    """
    seat = seats(plan)[result.rank]
    stages = rank_stages(plan, seat.rank)
    if seat.num_data * seat.num_tensor > 1:
        note = f"The layers of stage {stages[0]} are not timed one by one: several devices run it."
        return dataclasses.replace(result, notes=(*result.notes, note))
    if len(stages) > 1:
        note = f"The layers of {result.device} are not timed one by one: it runs several stages."
        return dataclasses.replace(result, notes=(*result.notes, note))
    first, last = spans(plan, program.graph)[stages[0]]
    program = dataclasses.replace(program, stage_dtype=plan.stages[stages[0]].dtype)
    speed = plan.cluster.device(result.device).speed
    try:
        found = layer_seconds(program, first, last, weight=weight, device=device, clock=clock, speed=speed)
    except (RuntimeError, IndexError, ValueError) as error:  # made-up inputs, or too little memory
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = f"The layers of stage {stages[0]} could not be timed one by one ({why})."
        return dataclasses.replace(result, notes=(*result.notes, note))
    return dataclasses.replace(result, layer_seconds=found)


def layer_seconds(
    program: Program, first: int, last: int, *, weight: Callable[[str], torch.Tensor], device: torch.device,
    clock: Callable[[], float] = time.perf_counter, speed: float = 1.0,
) -> tuple[float, ...]:  # fmt: skip
    """Forward time of layers first .. last - 1, one micro-batch each; medians of a few passes.

    What comes in is made up (zeros of the right shapes); the passes may change buffers such as running statistics.

    Args:
        program: of one micro-batch.
        first: the stage's first layer.
        last: one past its last layer.
        weight: gives weights by name, on ``device``.
        device: where the stage runs.
        clock: seconds; on other devices than the processor it is read when the device has finished.
        speed: of an emulated device, whose times are longer.
    """
    segment = program.segment(first, last, weight=weight, device=device)
    marks: list[float] = []

    def mark() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        marks.append(clock())

    marked = segment.with_body(_marked(segment, program, mark))
    passes = []
    for _ in range(1 + NUM_PASSES):
        values = [_made_up(value, program.graph.training, device) for value in program.graph.crossing(first)]
        marks.clear()
        mark()
        with torch.set_grad_enabled(program.graph.training):
            marked(*values)
        passes.append([later - earlier for earlier, later in itertools.pairwise(marks)])
    return tuple(statistics.median(column) / speed for column in zip(*passes[1:], strict=True))


def _marked(segment: Segment, program: Program, mark: Callable[[], None]) -> fx.GraphModule:
    """The segment's graph with ``mark`` called after the last operator of every layer."""
    layer_of = {
        node.name: index for index in range(segment.first, segment.last) for node in program.layer_nodes[index]
    }
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    now = segment.first
    for node in segment.body.graph.nodes:
        layer = segment.last if node.op == "output" else layer_of.get(node.name, now)
        for _ in range(now, layer):
            graph.call_function(mark)
        now = max(now, layer)
        copies[node] = graph.node_copy(node, copies.__getitem__)
    return fx.GraphModule(segment.body, graph, class_name="MarkedSegment")


def _made_up(value: Value, training: bool, device: torch.device) -> torch.Tensor:
    tensor = torch.zeros(value.shape, dtype=getattr(torch, value.dtype), device=device)
    # a copy, since operators in place may not write to a leaf
    return tensor.requires_grad_().clone() if training and value.differentiable else tensor
