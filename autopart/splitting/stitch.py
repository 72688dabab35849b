"""Stitch segments together so that they compute what the whole model does, transfers inserted where devices change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autopart.compression import Crossing, Traffic
from autopart.program import Program
from autopart.schema.codec import CodecName, is_compressible
from autopart.schema.graph import Graph
from autopart.segment import Segment
from autopart.transfer import transfer

__all__ = ["Placement", "Stitched", "homes", "stitch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Layers ``first`` .. ``last - 1`` run on ``device``."""

    first: int
    last: int
    device: torch.device
    dtype: str = ""
    """what its layers compute in; "": as traced"""


@dataclass(frozen=True, slots=True)
class Stitched:
    """Segments in order, with what each takes, and what nobody takes any more after it."""

    program: Program
    segments: tuple[Segment, ...]
    lifted: tuple[tuple[str, ...], ...]
    """per segment, the weights that live on another device"""
    dead_after: tuple[tuple[str, ...], ...]
    weight: Callable[[str], torch.Tensor]
    crossings: Mapping[str, Crossing]
    """of the values that are encoded when they first go on to another segment"""

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the model returns for this call; tensors among it are on the last segment's device."""
        return self.program.unflatten_outputs(self.run(self.program.flatten_inputs(args, kwargs)))

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The values that the model returns, from those that it takes (``graph.crossing`` of the two ends)."""
        graph = self.program.graph
        alive = {value.name: tensor for value, tensor in zip(graph.crossing(0), inputs, strict=True)}
        encoded: set[str] = set()
        for segment, lifted, dead in zip(self.segments, self.lifted, self.dead_after, strict=True):
            names = segment.input_names[: len(segment.input_names) - len(lifted)]
            for name in names:  # a value is moved once; whoever needs it later on yet another device moves it on
                if name in self.crossings and name not in encoded and _is_cut(alive[name].device, segment.device):
                    encoded.add(name)
                    wire = transfer(self.crossings[name].pack(alive[name]), segment.device)
                    alive[name] = self.crossings[name].unpack(wire)
                alive[name] = transfer(alive[name], segment.device)
            weights = [transfer(self.weight(name), segment.device) for name in lifted]
            results = segment(*(alive[name] for name in names), *weights)
            alive.update(zip(segment.output_names, results, strict=True))
            for name in dead:
                del alive[name]
        device = self.segments[-1].device
        return tuple(transfer(alive[value.name], device) for value in graph.crossing(len(graph.layers)))


def stitch(
    program: Program,
    placements: Sequence[Placement],
    home: Mapping[str, torch.device],
    *,
    weight: Callable[[str], torch.Tensor] | None = None,
    compress: CodecName = "none",
    traffic: Traffic | None = None,
) -> Stitched:
    """The whole program as segments on their devices.

    A segment on another device than a weight's home receives it (tied weights) as a differentiable transfer, so that
    all gradients sum into the one Parameter.

    Args:
        program: the traced model.
        placements: ranges of layers that tile it, in order.
        home: where each of the model's weights is, see ``homes``.
        weight: where weights come from by name; the user's module if not given.
        compress: the codec of values that go from segment to segment.
        traffic: counts what it sends.
    """
    weight = weight or program.weight
    lifted = tuple(_lifted(program.graph, placement, home) for placement in placements)
    segments = tuple(
        replace(program, stage_dtype=placement.dtype).segment(
            placement.first, placement.last, relay=False, lifted=names, device=placement.device,
            weight=_near(weight, home, placement.device),
        )
        for placement, names in zip(placements, lifted, strict=True)
    )  # fmt: skip
    dead = tuple(_dead_after(program.graph, placement) for placement in placements)
    crossings = _crossings(program.graph, compress, traffic or Traffic())
    return Stitched(program, segments, lifted, dead, weight, crossings)


def _crossings(graph: Graph, compress: CodecName, traffic: Traffic) -> dict[str, Crossing]:
    """Of what layers make, by name; the model's inputs are not encoded."""
    return {
        value.name: Crossing(compress, value.shape, getattr(torch, value.dtype), traffic=traffic)
        for value in graph.values if value.producer >= 0 and is_compressible(value, graph, compress)
    }


def _is_cut(one: torch.device, other: torch.device) -> bool:
    """Whether a value is encoded on its way; segments on the processor stand for devices, to show what a codec does."""
    return one != other or other.type == "cpu"


def homes(program: Program, placements: Sequence[Placement]) -> dict[str, torch.device]:
    """For every parameter and buffer that a layer uses, the device of the first segment that does.

    Tensors that the trace found in the code have no home: every segment that needs one gets a copy.
    """
    module, graph = program.module, program.graph
    owned = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    home: dict[str, torch.device] = {}
    for placement in placements:
        for name in _used(graph, placement):
            if name in owned:
                home.setdefault(name, placement.device)
    return home


def _used(graph: Graph, placement: Placement) -> list[str]:
    layers = graph.layers[placement.first : placement.last]
    return [graph.weights[index].name for index in sorted({index for layer in layers for index in layer.weights})]


def _lifted(graph: Graph, placement: Placement, home: Mapping[str, torch.device]) -> tuple[str, ...]:
    return tuple(name for name in _used(graph, placement) if home.get(name, placement.device) != placement.device)


def _near(
    weight: Callable[[str], torch.Tensor], home: Mapping[str, torch.device], device: torch.device
) -> Callable[[str], torch.Tensor]:
    return lambda name: weight(name) if name in home else transfer(weight(name), device)


def _dead_after(graph: Graph, placement: Placement) -> tuple[str, ...]:
    """The values that come into a segment and that nobody reads after it."""
    return tuple(
        value.name
        for value in graph.values
        if value.producer < placement.first <= value.consumers[-1] < placement.last
    )
