"""Measure every layer on a device that is here.

Layers run one after the other, as they will in a stage, so that a layer finds the caches as the one before left them
(a layer run alone again and again finds its weights there and seems faster).  In training every layer is its own little
stage: its inputs are cut from the graph, its backward is run from the gradients that the next layers gave.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from autopart.errors import DeviceError
from autopart.pace import pace_seconds
from autopart.profiling.here import physical_memory_bytes
from autopart.profiling.timing import Clock, laps_on, median_and_spread, num_threads_set
from autopart.program import Program, Segment
from autopart.progress import Progress, silent
from autopart.schema.device import Device
from autopart.schema.graph import Layer
from autopart.schema.profile import KindProfile
from autopart.units import format_bytes

__all__ = ["measure"]

MIN_REPEATS, MAX_REPEATS = 2, 7
BUDGET_SECONDS = 4.0
"""after so long, and MIN_REPEATS, it is enough: repeated blocks give a sample each per run"""
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


@dataclass(frozen=True, slots=True)
class _Step:
    """One layer as it is run: its segment, and the constants that an earlier layer has computed."""

    segment: Segment
    inputs: tuple[str, ...]
    constants: tuple[torch.Tensor, ...]
    dead_after: tuple[str, ...]


def measure(
    program: Program,
    inputs: Sequence[torch.Tensor],
    device: Device,
    *,
    optimizer: str = "none",
    clock: Clock | None = None,
    progress: Progress = silent,
) -> KindProfile:
    """Forward, backward and optimizer seconds of every layer on ``device``, at its kind's full speed.

    The median over several runs of the whole model, after one that warms up; layers with the same signature share
    their samples.  The user's buffers and gradients are put back.

    Args:
        program: of one micro-batch; its ``graph.training`` says whether backward is measured too.
        inputs: the tensors of ``program.flatten_inputs``.
        device: one that is here.
        optimizer: adamw, adam, sgd or none.
        clock: seconds; not used on CUDA.  If not given: processor time of this thread for a device of one thread
            (which other processes cannot lengthen), else wall-clock time.
        progress: told about every run.

    Raises:
        DeviceError: the device is not here, or the model has no weights and random ones do not fit in memory.
    """
    if device.torch_device is None:
        raise DeviceError(f"{device.name} is not here, so nothing can be measured on it")
    target = torch.device(device.torch_device)
    clock = clock or (time.thread_time if device.num_threads == 1 else time.perf_counter)
    with num_threads_set(device.num_threads), _weights_on(program, target) as weights, _kept(weights):
        paces = [pace_seconds(target, clock)]
        samples = _sample(program, inputs, weights, target, device.name, clock, progress)
        paces.append(pace_seconds(target, clock))
        kept = optimizer if program.graph.training else "none"
        updates = _optimizer_seconds(program, weights, kept, target, clock)
    return _profile(device, program.graph.layers, samples, updates, sum(paces) / len(paces))


def _sample(
    program: Program, inputs: Sequence[torch.Tensor], weights: Mapping[str, torch.Tensor], device: torch.device,
    name: str, clock: Clock, progress: Progress,
) -> list[tuple[list[float], list[float]]]:  # fmt: skip
    """Per timed run, the forward and backward seconds of every layer."""
    steps = _steps(program, weights, device)
    once = _train_once if program.graph.training else _infer_once
    samples = []
    started = clock()
    for run in range(1 + MAX_REPEATS):
        progress(f"measuring {program.graph.batch_size} at once on {name}", run, 1 + MAX_REPEATS)
        times = once(program, steps, inputs, device, clock)
        samples += [times] if run else []
        if len(samples) >= MIN_REPEATS and clock() - started > BUDGET_SECONDS:
            break
    progress(f"measuring {program.graph.batch_size} at once on {name}", 1 + MAX_REPEATS, 1 + MAX_REPEATS)
    return samples


def _profile(
    device: Device, layers: Sequence[Layer], samples: Sequence[tuple[list[float], list[float]]],
    updates: tuple[float, ...], pace: float,
) -> KindProfile:  # fmt: skip
    forward: dict[str, list[float]] = defaultdict(list)
    backward: dict[str, list[float]] = defaultdict(list)
    for times in samples:
        for layer, ahead, back in zip(layers, *times, strict=True):
            forward[layer.signature].append(ahead)
            backward[layer.signature].append(back)
    ahead_of = {signature: median_and_spread(each) for signature, each in forward.items()}
    back_of = {signature: median_and_spread(each)[0] for signature, each in backward.items()}
    threads = f", {device.num_threads} thread{'s' * (device.num_threads > 1)}" if device.num_threads else ""
    return KindProfile(
        kind=device.kind,
        origin="measured",
        basis=f"torch {torch.__version__}{threads}, median of {len(samples)} runs of the whole model",
        forward_seconds=tuple(ahead_of[layer.signature][0] for layer in layers),
        backward_seconds=tuple(back_of[layer.signature] for layer in layers),
        optimizer_seconds=updates,
        spread=tuple(ahead_of[layer.signature][1] for layer in layers),
        pace_seconds=pace,
    )


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


def _inputs(program: Program, inputs: Sequence[torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    values = program.graph.crossing(0)
    placed = [torch.zeros_like(each, device=device) if each.is_meta else each.to(device) for each in inputs]
    return {value.name: tensor for value, tensor in zip(values, placed, strict=True)}


@torch.no_grad()
def _infer_once(
    program: Program, steps: Sequence[_Step], inputs: Sequence[torch.Tensor], device: torch.device, clock: Clock
) -> tuple[list[float], list[float]]:
    alive = _inputs(program, inputs, device)
    laps = laps_on(device, clock)
    laps.mark()
    for step in steps:
        results = step.segment(*(alive[name] for name in step.inputs), *step.constants)
        alive.update(zip(step.segment.output_names, results, strict=True))
        for name in step.dead_after:
            alive.pop(name, None)
        laps.mark()
    return laps.seconds(), [0.0] * len(steps)


def _train_once(
    program: Program, steps: Sequence[_Step], inputs: Sequence[torch.Tensor], device: torch.device, clock: Clock
) -> tuple[list[float], list[float]]:
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


def _optimizer_seconds(
    program: Program, weights: Mapping[str, torch.Tensor], optimizer: str, device: torch.device, clock: Clock
) -> tuple[float, ...]:
    """One update of every layer's trainable weights, each weight charged to the first layer that uses it."""
    seen: set[int] = set()
    known: dict[tuple[tuple[int, ...], ...], float] = {}
    seconds = []
    for layer in program.graph.layers:
        own = [index for index in layer.weights if index not in seen and program.graph.weights[index].trainable]
        seen.update(own)
        shapes = tuple(tuple(weights[program.graph.weights[index].name].shape) for index in own)
        if optimizer == "none" or not own:
            seconds.append(0.0)
            continue
        if shapes not in known:
            tensors = [weights[program.graph.weights[index].name] for index in own]
            known[shapes] = _update_seconds(tensors, OPTIMIZERS[optimizer], device, clock)
        seconds.append(known[shapes])
    return tuple(seconds)


def _update_seconds(
    tensors: Sequence[torch.Tensor], make: type[torch.optim.Optimizer], device: torch.device, clock: Clock
) -> float:
    copies = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = make(copies, lr=0.0)  # type: ignore[call-arg]
    samples = []
    for run in range(4):
        laps = laps_on(device, clock)
        laps.mark()
        optimizer.step()
        laps.mark()
        samples += laps.seconds() if run else []  # the first makes the states
    return median_and_spread(samples)[0]


@contextmanager
def _weights_on(program: Program, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """The weights on ``device``: the user's own where they are there, copies elsewhere, random ones for meta."""
    missing = sum(weight.bytes for weight in program.graph.weights if program.weight(weight.name).is_meta)
    room = physical_memory_bytes()
    if device.type == "cpu" and missing > room:
        raise DeviceError(
            f"{program.graph.model} has no weights, and random ones ({format_bytes(missing)}) do not fit in this "
            f"machine's {format_bytes(room)}: plan for kinds of the catalogue, or for a smaller model"
        )
    placed = {}
    for weight in program.graph.weights:
        own = program.weight(weight.name)
        tensor = torch.zeros(own.shape, dtype=own.dtype, device=device) if own.is_meta else own.detach().to(device)
        same = tensor.data_ptr() == own.data_ptr() and not own.is_meta
        placed[weight.name] = own if same else (
            nn.Parameter(tensor, own.requires_grad) if isinstance(own, nn.Parameter) else tensor
        )
    yield placed


@contextmanager
def _kept(weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Buffers and gradients as they were, afterwards."""
    buffers = {name: t.detach().clone() for name, t in weights.items() if not isinstance(t, nn.Parameter)}
    gradients = {name: t.grad for name, t in weights.items()}
    for tensor in weights.values():
        tensor.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.grad = gradients[name]
                if name in buffers:
                    tensor.copy_(buffers[name])
