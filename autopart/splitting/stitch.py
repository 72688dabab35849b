"""Stitch segments together so that they compute what the whole model does, transfers inserted where devices change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from autopart.program import Program
from autopart.segment import Segment
from autopart.transfer import transfer

__all__ = ["Placement", "Stitched", "homes", "stitch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Layers ``first`` .. ``last - 1`` run on ``device``."""

    first: int
    last: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class Stitched:
    """Segments in order, with what each takes, and what nobody takes any more after it."""

    program: Program
    segments: tuple[Segment, ...]
    lifted: tuple[tuple[str, ...], ...]
    """per segment, the weights that live on another device"""
    dead_after: tuple[tuple[str, ...], ...]
    weight: Callable[[str], torch.Tensor]

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the model returns for this call; tensors among it are on the last segment's device."""
        return self.program.unflatten_outputs(self.run(self.program.flatten_inputs(args, kwargs)))

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The values that the model returns, from those that it takes (``graph.crossing`` of the two ends)."""
        graph = self.program.graph
        alive = {value.name: tensor for value, tensor in zip(graph.crossing(0), inputs, strict=True)}
        for segment, lifted, dead in zip(self.segments, self.lifted, self.dead_after, strict=True):
            names = segment.input_names[: len(segment.input_names) - len(lifted)]
            for name in names:  # a value is moved once; whoever needs it later on yet another device moves it on
                alive[name] = transfer(alive[name], segment.device)
            weights = [transfer(self.weight(name), segment.device) for name in lifted]
            results = segment(*(alive[name] for name in names), *weights)
            alive.update(zip(segment.output_names, results, strict=True))
            for name in dead:
                del alive[name]
        device = self.segments[-1].device
        return tuple(transfer(alive[value.name], device) for value in graph.crossing(len(graph.layers)))


def stitch(
    program: Program, placements: Sequence[Placement], *, weight: Callable[[str], torch.Tensor] | None = None
) -> Stitched:
    """The whole program as segments on their devices.

    A weight lives where the first segment that uses it runs; another segment that uses it (tied weights) receives it
    as a differentiable transfer, so that all gradients sum into the one Parameter.
    """
    graph = program.graph
    home = homes(program, placements)
    segments, lifted, dead = [], [], []
    for placement in placements:
        layers = graph.layers[placement.first : placement.last]
        used = {graph.weights[index].name for layer in layers for index in layer.weights}
        lifted.append(tuple(sorted(name for name in used if home[name] != placement.device)))
        segments.append(
            program.segment(
                placement.first,
                placement.last,
                relay=False,
                lifted=lifted[-1],
                weight=weight,
                device=placement.device,
            )
        )
        dead.append(
            tuple(
                value.name
                for value in graph.values
                if value.producer < placement.first <= value.consumers[-1] < placement.last
            )
        )
    return Stitched(program, tuple(segments), tuple(lifted), tuple(dead), weight or program.weight)


def homes(program: Program, placements: Sequence[Placement]) -> dict[str, torch.device]:
    """For every weight that a layer uses, the device of the first segment that does."""
    graph = program.graph
    home: dict[str, torch.device] = {}
    for placement in placements:
        for layer in graph.layers[placement.first : placement.last]:
            for index in layer.weights:
                home.setdefault(graph.weights[index].name, placement.device)
    return home
