"""Run one layer by itself, for models of which only the most important layers can be measured in the time there is.

Inputs are made up in the shapes that the trace found.  Before every sample the cache is emptied and the inputs are made
anew: so a layer finds its inputs in the cache and its weights in memory, as it does in a model.  Backward, which in a
model comes much later, finds an empty cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from autopart.profiling.measuring.timing import Clock, laps_on
from autopart.profiling.measuring.weights import PlacedWeights
from autopart.program import Program
from autopart.schema.graph import Value

__all__ = ["LayerSample", "layer_alone"]

FLUSHED_BYTES = 128 * 10**6
"""more than the cache of a card (50 MB on an H100) or of a few cores holds"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSample:
    """One run of a layer.  The bytes are the CUDA allocator's; None on other devices."""

    forward_seconds: float
    backward_seconds: float
    peak_bytes: int | None = None
    """most that forward took at once, weights and inputs not counted"""
    saved_bytes: int | None = None
    """what forward left for backward, outputs included"""


def layer_alone(
    program: Program, index: int, inputs: Sequence[torch.Tensor], weights: PlacedWeights, device: torch.device,
    clock: Clock,
) -> Callable[[], LayerSample]:  # fmt: skip
    """A function that runs layer ``index`` once on ``device``, backward too if the program is for training.

    Args:
        program: of one micro-batch.
        index: of the layer.
        inputs: the tensors of ``program.flatten_inputs``.
        weights: which the layer's come from.
        device: where to run.
        clock: seconds; not used on CUDA.
    """
    given = program.shared_constants()[index]
    segment = program.segment(
        index, index + 1, relay=False, given=given, weight=weights.__getitem__, device=device
    )  # fmt: skip
    known = {value.name: value for value in program.graph.values}
    values = program.constants(given, weight=weights.__getitem__, device=device)
    constants = [values[name] for name in given]
    real = {value.name: tensor for value, tensor in zip(program.graph.crossing(0), inputs, strict=True)}
    names = segment.input_names[: len(segment.input_names) - len(given)]
    models = [_input(known[name], real.get(name), device) for name in names]
    training = program.graph.training
    flows = [training and known[name].differentiable for name in names]
    wanted = [at for at, name in enumerate(segment.output_names) if training and known[name].differentiable]
    flush = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def once() -> LayerSample:
        flush.zero_()
        fresh = [model.clone().requires_grad_(flows_) for model, flows_ in zip(models, flows, strict=True)]
        memory = _Allocated(device)
        ahead = laps_on(device, clock)
        with torch.set_grad_enabled(training):
            ahead.mark()
            results = segment(*fresh, *constants)
            ahead.mark()
        peak, saved = memory.grown()
        forward = ahead.seconds()[0]
        outputs = [results[at] for at in wanted]
        return LayerSample(
            forward_seconds=forward,
            backward_seconds=_backward(outputs, flush, device, clock) if outputs else 0.0,
            peak_bytes=peak,
            saved_bytes=saved,
        )

    return once


def _backward(outputs: Sequence[torch.Tensor], flush: torch.Tensor, device: torch.device, clock: Clock) -> float:
    flush.zero_()
    gradients = [torch.ones_like(output) for output in outputs]
    laps = laps_on(device, clock)
    laps.mark()
    torch.autograd.backward(outputs, gradients)
    laps.mark()
    return laps.seconds()[0]


def _input(value: Value, real: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """The model's own input, or one made up: zeros as indices are always in range, noise for what is computed with."""
    if real is not None and not real.is_meta:
        return real.detach().to(device)
    dtype: torch.dtype = getattr(torch, value.dtype)
    if dtype.is_floating_point:
        return torch.randn(value.shape, device=device).to(dtype)
    return torch.ones(value.shape, dtype=dtype, device=device) if dtype == torch.bool else torch.zeros(
        value.shape, dtype=dtype, device=device
    )


class _Allocated:
    """What the CUDA allocator has given out since; not verified on hardware yet."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def grown(self) -> tuple[int | None, int | None]:
        """The peak and what is there now, both over what was there at first."""
        if self._device.type != "cuda":
            return None, None
        peak, now = torch.cuda.max_memory_allocated(self._device), torch.cuda.memory_allocated(self._device)
        return peak - self._before, now - self._before
