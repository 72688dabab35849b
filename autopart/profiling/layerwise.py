"""Run a program layer by layer, reading the time between layers.

Layers run one after the other, as they will in a stage, so that a layer finds the caches as the one before left them
(a layer run alone again and again finds its weights there and seems faster).  In training every layer is its own little
stage: its inputs are cut from the graph, its backward is run from the gradients that the next layers gave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from autopart.profiling.timing import Clock, laps_on
from autopart.program import Program, Segment

__all__ = ["LayerTimes", "layer_runner"]

LayerTimes = tuple[list[float], list[float]]
"""forward and backward seconds of every layer"""

HELD_BYTES = 512 * 10**6


def layer_runner(
    program: Program, inputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor], device: torch.device,
    clock: Clock,
) -> Callable[[], LayerTimes]:  # fmt: skip
    """A function that runs all layers once on ``device`` and gives their times.

    Args:
        program: whose ``graph.training`` says whether backward is run too.
        inputs: the tensors of ``program.flatten_inputs``.
        weights: by name, on ``device``; in training gradients accumulate in them.
        device: where to run.
        clock: seconds; not used on CUDA.
    """
    steps, outputs = _steps(program, weights, device), _Outputs(program)
    if program.graph.training:
        return lambda: _train_once(program, steps, inputs, device, clock)
    return lambda: _infer_once(program, steps, inputs, device, clock, outputs)


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer as it is run: its segment, and the constants that an earlier layer has computed."""

    segment: Segment
    inputs: tuple[str, ...]
    constants: tuple[torch.Tensor, ...]
    dead_after: tuple[str, ...]


def _steps(program: Program, weights: Mapping[str, torch.Tensor], device: torch.device) -> list[_Step]:
    """Every layer as a segment of its own."""
    shared = program.shared_constants()
    names = tuple(dict.fromkeys(name for given in shared for name in given))
    values = program.constants(names, weight=weights.__getitem__, device=device)
    steps = []
    for index, given in enumerate(shared):
        segment = program.segment(index, index + 1, relay=False, given=given, weight=weights.__getitem__, device=device)
        dead = tuple(value.name for value in program.graph.values if value.consumers[-1] == index)
        names = segment.input_names[: len(segment.input_names) - len(given)]
        steps.append(_Step(segment, names, tuple(values[name] for name in given), dead))
    return steps


class _Outputs:
    """The model's outputs of the last runs: a pipeline holds those of all micro-batches until its step is over.

    So their memory is fresh each time and the kernel has to hand out its pages, which takes a language model's logits
    as long as a layer.  Large outputs get fresh pages in any case.
    """

    def __init__(self, program: Program) -> None:
        self._names = [value.name for value in program.graph.crossing(len(program.graph.layers))]
        self._held: list[list[torch.Tensor]] = []

    def hold(self, alive: Mapping[str, torch.Tensor]) -> None:
        """Keep these outputs, and of those before as many as are small together."""
        self._held.append([alive[name] for name in self._names])
        while len(self._held) > 1 and sum(t.nbytes for each in self._held for t in each) > HELD_BYTES:
            del self._held[0]


def _inputs(program: Program, inputs: Sequence[torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    values = program.graph.crossing(0)
    placed = [torch.zeros_like(each, device=device) if each.is_meta else each.to(device) for each in inputs]
    return {value.name: tensor for value, tensor in zip(values, placed, strict=True)}


@torch.no_grad()
def _infer_once(
    program: Program, steps: Sequence[_Step], inputs: Sequence[torch.Tensor], device: torch.device, clock: Clock,
    outputs: _Outputs,
) -> LayerTimes:  # fmt: skip
    alive = _inputs(program, inputs, device)
    laps = laps_on(device, clock)
    laps.mark()
    for step in steps:
        results = step.segment(*(alive[name] for name in step.inputs), *step.constants)
        alive.update(zip(step.segment.output_names, results, strict=True))
        for name in step.dead_after:
            alive.pop(name, None)
        laps.mark()
    outputs.hold(alive)
    return laps.seconds(), [0.0] * len(steps)


def _train_once(
    program: Program, steps: Sequence[_Step], inputs: Sequence[torch.Tensor], device: torch.device, clock: Clock
) -> LayerTimes:
    flows = {value.name for value in program.graph.values if value.differentiable}
    alive = _inputs(program, inputs, device)
    taken: list[dict[str, torch.Tensor]] = []
    made: list[dict[str, torch.Tensor]] = []
    laps = laps_on(device, clock)
    laps.mark()
    for step in steps:
        taken.append({name: alive[name].detach().requires_grad_(name in flows) for name in step.inputs})
        results = step.segment(*taken[-1].values(), *step.constants)
        made.append(dict(zip(step.segment.output_names, results, strict=True)))
        alive.update(made[-1])
        laps.mark()
    forward = laps.seconds()
    return forward, _backward_once(flows, taken, made, device, clock)


def _backward_once(
    flows: set[str], taken: list[dict[str, torch.Tensor]], made: list[dict[str, torch.Tensor]],
    device: torch.device, clock: Clock,
) -> list[float]:  # fmt: skip
    """Backward layer by layer from the last; what a layer's inputs receive goes to the layers that made them."""
    gradients: dict[str, torch.Tensor] = {}
    laps = laps_on(device, clock)
    laps.mark()
    while made:
        inputs, outputs = taken.pop(), made.pop()
        wanted = [(out, gradients.pop(name, None)) for name, out in outputs.items() if name in flows]
        if wanted:
            torch.autograd.backward(
                [out for out, _ in wanted], [torch.ones_like(out) if g is None else g for out, g in wanted]
            )
        for name, tensor in inputs.items():
            if tensor.grad is not None:
                gradients[name] = gradients[name] + tensor.grad if name in gradients else tensor.grad
        laps.mark()
    return laps.seconds()[::-1]
