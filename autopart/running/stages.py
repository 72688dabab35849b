"""The stages of a plan as modules, ready for torch.distributed.pipelining."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from autopart.compression import Crossing
from autopart.errors import RunError
from autopart.program import Program, Segment
from autopart.recasting import in_type
from autopart.rerun import rerun_layers
from autopart.running.mesh import num_replicas, samples_per_replica
from autopart.schema.graph import Graph, Value
from autopart.schema.plan import Plan, Stage

__all__ = [
    "Feed",
    "StageModule",
    "boundary_examples",
    "check_alone",
    "rank_stages",
    "rank_weights",
    "rerun_planned",
    "restore_shapes",
    "spans",
    "stage_device",
    "stage_segment",
    "stage_weights",
]

def spans(plan: Plan, graph: Graph) -> tuple[tuple[int, int], ...]:
    """First layer and the one after the last, for each stage.

    Raises:
        RunError: the plan is not of this model at this micro-batch size, or asks for what cannot be run.
    """
    _check_same_model(plan, graph)
    ends = [0]
    for stage in plan.stages:
        ends.append(ends[-1] + len(stage.layers))
    return tuple(itertools.pairwise(ends))


def check_alone(plan: Plan) -> None:
    """Refuses stages that several devices share or replicate, which takes a process for each of them.

    Raises:
        RunError: there is one.
    """
    wide = next((stage for stage in plan.stages if len(stage.devices) > 1), None)
    if wide is not None:
        num_processes = len({name for stage in plan.stages for name in stage.devices})
        raise RunError(
            f"stage {wide.index} is run by {len(wide.devices)} devices together, which takes a process for each; start "
            f"it with torchrun --nproc-per-node {num_processes}, or use autopart run"
        )


def stage_device(plan: Plan, stage: int) -> torch.device:
    """What the tensors of a stage are placed on.

    Raises:
        RunError: the device is not here.
    """
    device = plan.cluster.device(plan.stages[stage].devices[0])
    if device.torch_device is None:
        raise RunError(f"{device.name} is not in this machine, so the plan cannot be run here; plan for --devices auto")
    return torch.device(device.torch_device)


def stage_weights(plan: Plan, graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Names of the parameters and buffers each stage uses; a tied one is named by every stage that uses it."""
    return tuple(
        tuple(graph.weights[index].name for index in sorted({i for layer in graph.layers[a:b] for i in layer.weights}))
        for a, b in spans(plan, graph)
    )


def rank_stages(plan: Plan, rank: int) -> tuple[int, ...]:
    """The stages that a rank runs, ascending."""
    return tuple(stage for stage, owner in enumerate(plan.ranks) if owner == rank)


def rank_weights(plan: Plan, graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Names of the parameters and buffers that each rank uses."""
    by_stage = stage_weights(plan, graph)
    return tuple(
        tuple(dict.fromkeys(name for stage in rank_stages(plan, rank) for name in by_stage[stage]))
        for rank in range(len(plan.devices_by_rank))
    )


def stage_segment(
    program: Program, span: tuple[int, int], device: torch.device, placed: dict[str, torch.Tensor] | None = None,
    *, dtype: str = "", shared: Collection[str] = (),
) -> Segment:
    """The layers of a stage on its device.

    Weights that are on the device already are the user's own objects, others are copied there; the user's model is
    left as it is.

    Args:
        program: the model.
        span: first layer, and one past the last.
        device: where.
        placed: weights that are there by now; filled, so that one that several stages use stays one object.
        dtype: what the stage computes in; in inference its weights are copied in that type, once.
        shared: weights that other processes hold too, and so in the model's type: they are cast at every call.
    """
    placed = {} if placed is None else placed

    def weight(name: str) -> torch.Tensor:
        is_cast = dtype and not program.graph.training and name not in shared
        key = f"{name} in {dtype}" if is_cast else name
        if key not in placed:
            found = _placed(program.weight(name), device)
            placed[key] = _in_type(found, dtype) if is_cast else found
        return placed[key]

    return dataclasses.replace(program, stage_dtype=dtype).segment(*span, weight=weight, device=device)


def rerun_planned(segment: Segment, stage: Stage, *, training: bool) -> tuple[Segment, tuple[str, ...]]:
    """A stage's segment, in training with its layers run again in the backward if the plan says so, and notes on it."""
    if not (training and stage.recompute):
        return segment, ()
    reruns = rerun_layers(segment)
    if not reruns.kept:
        return reruns.segment, ()
    names = [stage.layers[layer - segment.first] for layer in reruns.kept]
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return reruns.segment, (
        f"Stage {stage.index}: {len(names)} of its {len(stage.layers)} layers cannot be run again in the backward "
        f"without side effects ({some}); they keep what they save, so the stage needs more memory than planned.",
    )


def boundary_examples(
    graph: Graph, boundary: int, *, training: bool, crossings: Sequence[Crossing] | None = None
) -> tuple[torch.Tensor, ...]:
    """Meta tensors like those that cross a boundary; told them, torch's stages need no trial run.

    That trial run would feed uninitialised memory to the model, and an embedding looks such indices up.
    """
    values = tuple(
        torch.empty(
            _at_least_1d(value.shape),
            dtype=getattr(torch, value.dtype),
            device="meta",
            requires_grad=_carries_gradient(value, training),
        )
        for value in graph.crossing(boundary)
    )
    if crossings is None:
        return values
    return tuple(crossing.wire_like(value) for crossing, value in zip(crossings, values, strict=True))


class Feed:
    """The model inputs of the present step, one tuple per micro-batch.

    torch's schedule cuts its arguments along dimension 0, all of them.  So it is given the micro-batches' numbers to
    cut, and the first stage looks up what belongs to its number: inputs that are not batched need no special word.
    """

    def __init__(self) -> None:
        self.chunks: tuple[tuple[torch.Tensor, ...], ...] = ()

    def __call__(self, number: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The inputs of the micro-batch whose number is in a tensor of shape (1,)."""
        return self.chunks[int(number)]


class StageModule(nn.Module):
    """A segment whose outputs can be sent; with ``incoming`` and ``outgoing`` as wires of their codecs.

    ``passed_back`` is laid around what comes in and has a gradient, to change that gradient.

    Outputs are contiguous and have at least one dimension, and those that the graph holds for not differentiable
    are detached: both sides of a boundary must agree on which gradients travel back.
    """

    def __init__(
        self,
        segment: Segment,
        graph: Graph,
        span: tuple[int, int],
        device: torch.device,
        *,
        training: bool,
        feed: Feed | None = None,
        incoming: Sequence[Crossing] | None = None,
        outgoing: Sequence[Crossing] | None = None,
        passed_back: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._passed_back = passed_back
        self._incoming, self._outgoing = incoming, outgoing
        self.segment = segment
        self._device = device
        self._feed = feed
        self._is_last = span[1] == len(graph.layers)
        self._input_shapes = tuple(value.shape for value in graph.crossing(span[0]))
        self._carries_gradient = tuple(_carries_gradient(value, training) for value in graph.crossing(span[1]))

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values that cross the next boundary."""
        if self._feed is not None:
            values = tuple(value.to(self._device) for value in self._feed(*values))
        elif self._incoming is not None:
            values = tuple(crossing.unpack(wire) for crossing, wire in zip(self._incoming, values, strict=True))
        else:
            values = tuple(value.view(s) for value, s in zip(values, self._input_shapes, strict=True))
        if self._passed_back is not None:
            values = tuple(self._passed_back(value) if value.requires_grad else value for value in values)
        outputs: tuple[torch.Tensor, ...] = self.segment(*values)
        if self._is_last:
            return tuple(output.reshape(_at_least_1d(tuple(output.shape))) for output in outputs)
        if self._outgoing is not None:
            outputs = tuple(crossing.pack(output) for crossing, output in zip(self._outgoing, outputs, strict=True))
        return tuple(
            _sendable(output, keeps) for output, keeps in zip(outputs, self._carries_gradient, strict=True)
        )


def restore_shapes(values: tuple[torch.Tensor, ...], graph: Graph) -> tuple[torch.Tensor, ...]:
    """The model's output tensors as the model returns them: scalars were sent as vectors of one element."""
    shapes = [value.shape for value in graph.crossing(len(graph.layers))]
    return tuple(value if shape else value.reshape(()) for value, shape in zip(values, shapes, strict=True))


def _placed(weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    if weight.device == device or (weight.device.type, device.type) == ("cpu", "cpu"):
        return weight
    if weight.is_meta:
        raise RunError("the model has no weights to run with (meta device); give a source that builds it with weights")
    moved = weight.detach().to(device)
    return nn.Parameter(moved, weight.requires_grad) if isinstance(weight, nn.Parameter) else moved


def _in_type(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    made = in_type(weight.detach(), dtype)
    if made.dtype == weight.dtype:
        return weight
    return nn.Parameter(made, weight.requires_grad) if isinstance(weight, nn.Parameter) else made


def _sendable(output: torch.Tensor, carries_gradient: bool) -> torch.Tensor:
    if not carries_gradient:
        output = output.detach()
    output = (output if output.dim() else output.reshape(1)).contiguous()
    # torch detaches outputs in place once zero-bubble's input half is over, which a view does not allow
    return output.clone() if output.requires_grad and output._is_view() else output


def _carries_gradient(value: Value, training: bool) -> bool:
    return training and value.differentiable


def _at_least_1d(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape or (1,)


def _check_same_model(plan: Plan, graph: Graph) -> None:
    planned = [name for stage in plan.stages for name in stage.layers]
    traced = [layer.name for layer in graph.layers]
    if planned != traced or plan.model.fingerprint != graph.fingerprint:
        differing = next((pair for pair in zip(planned, traced, strict=False) if pair[0] != pair[1]), None)
        where = f": layer {differing[0]} here is {differing[1]}" if differing else ""
        raise RunError(
            f"the plan is of another model: {plan.model.name} with {len(planned)} layers, this one has "
            f"{len(traced)}{where}; plan this model again"
        )
    num_samples = plan.job.batch // plan.schedule.num_microbatches
    if graph.batch_size not in {num_samples // stage.data_parallel for stage in plan.stages}:
        num_samples = samples_per_replica(plan)
        raise RunError(f"the model was traced at {graph.batch_size} samples, the plan's micro-batch has {num_samples}"
                       f"{' for each replica' * (num_replicas(plan) > 1)}; trace it at that size")
