"""Run a program layer by layer, reading the time between layers.

Layers run one after the other, as they will in a stage, so that a layer finds the caches as the one before left them
(a layer run alone again and again finds its weights there and seems faster).  In training every layer is its own little
stage: its inputs are cut from the graph, its backward is run from the gradients that the next layers gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from autopart.opaque import OpaqueCall
from autopart.profiling.measuring.timing import Clock, laps_on
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
    weights: tuple[torch.Tensor, ...]
    has_own_code: bool
    """of the user's, run as it is written"""


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
        steps.append(_Step(
            segment, names, tuple(values[name] for name in given), dead, tuple(dict.fromkeys(segment.parameters())),
            any(isinstance(node.target, OpaqueCall) for node in segment.body.graph.nodes),
        ))  # fmt: skip
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
    alive.clear()
    return forward, _backward_once(flows, steps, taken, made, device, clock)


def _backward_once(
    flows: set[str], steps: Sequence[_Step], taken: list[dict[str, torch.Tensor]],
    made: list[dict[str, torch.Tensor]], device: torch.device, clock: Clock,
) -> list[float]:  # fmt: skip
    """Backward layer by layer from the last; what a layer's inputs receive goes to the layers that made them."""
    gradients: dict[str, torch.Tensor] = {}
    laps = laps_on(device, clock)
    laps.mark()
    for step in reversed(steps):
        inputs, outputs = taken.pop(), made.pop()
        wanted = [(out, gradients.pop(name, None)) for name, out in outputs.items() if name in flows]
        if wanted:
            ends = [out for out, _ in wanted]
            back = [torch.ones_like(out) if g is None else g for out, g in wanted]
            del outputs, wanted
            for name, gradient in _received(step, inputs, ends, back).items():
                gradients[name] = _added(gradients.pop(name), gradient, gradients) if name in gradients else gradient
        laps.mark()
    return laps.seconds()[::-1]


def _received(
    step: _Step, inputs: Mapping[str, torch.Tensor], ends: list[torch.Tensor], back: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The gradients of a layer's inputs; those of its weights are added up where they are.

    Inside a stage a gradient is handed on as it is, where the leaves of a graph get copies of what others hold too.  So
    it is asked for, but of code that is run as it is written, which may refuse that (reentrant checkpoints do).
    """
    leaves = {name: each for name, each in inputs.items() if each.requires_grad}
    if step.has_own_code:
        torch.autograd.backward(ends, back)
        return {name: each.grad for name, each in leaves.items() if each.grad is not None}
    weights = [each for each in step.weights if each.requires_grad]
    found = torch.autograd.grad(ends, [*leaves.values(), *weights], back, allow_unused=True)
    received = {name: each for name, each in zip(leaves, found, strict=False) if each is not None}
    for weight, gradient in zip(weights, found[len(leaves) :], strict=True):
        if gradient is not None:
            if weight.grad is None:
                weight.grad = gradient.clone() if _is_shared(gradient, received.values()) else gradient
            else:
                weight.grad += gradient
    return received


def _added(one: torch.Tensor, other: torch.Tensor, held: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of a value's gradients, in the first's memory if nobody else has it, as torch's engine adds them."""
    return one + other if _is_shared(one, (other, *held.values())) else one.add_(other)


def _is_shared(tensor: torch.Tensor, others: Iterable[torch.Tensor]) -> bool:
    return any(each.untyped_storage()._cdata == tensor.untyped_storage()._cdata for each in others)
