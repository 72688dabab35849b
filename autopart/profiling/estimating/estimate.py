"""How long the layers take on a kind of device that is not here, from its data sheet: one law per operator family.

The laws are in ``matrixproduct``, ``convolution`` and ``vectors``, what they need of a device in ``rates``, their
constants in profiles/estimate.yaml; ``calibrate`` fits them and ``leftout`` says how far they are off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from autopart.profiling.estimating.laws import law_file, shipped_laws
from autopart.profiling.estimating.operators import ACCUMULATION_PASSES, gradients, seconds
from autopart.profiling.estimating.rates import FALLBACKS, WIDENED, Rates, rates_of, steady
from autopart.schema.device import Kind
from autopart.schema.graph import Graph, Layer, Weight, Work
from autopart.schema.profile import KindProfile
from autopart.stagedtypes import timed_graph

__all__ = ["OPTIMIZER_PASSES", "corrected", "estimate"]

OPTIMIZER_PASSES: Mapping[str, int] = {"adamw": 20, "adam": 18, "momentum": 8, "sgd": 3, "none": 0}
"""reads and writes of every trainable weight's bytes in a step of torch's multi-tensor optimizers, one operator after
the other: AdamW decays (2), averages the gradient (3) and its square (2 + 3), takes the root (2), divides by the bias
correction (2), adds epsilon (2) and updates (4); a fused step would take 7"""

COMMON_SHARE = 0.5
"""how much of a layer's error on one device is taken to be its error on another (an exponent)"""

LARGEST_CORRECTION = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gradients:
    """What of a layer's backward runs."""

    any: bool
    of_inputs: bool
    of_weights: bool


def estimate(
    graph: Graph, kind: Kind, *, training: bool, optimizer: str, tf32: bool = False, dtype: str = ""
) -> KindProfile:
    """Forward, backward and optimizer times of every layer of ``graph`` on a device of ``kind``.

    Args:
        graph: one micro-batch.
        kind: of the catalogue, or the user's own.
        training: whether backward and optimizer count; else they are zero.
        optimizer: adamw, adam, sgd or none.
        tf32: float32 matrix products run in TF32 where the device can (torch.set_float32_matmul_precision("high")).
        dtype: what layers are computed in instead of the model's half type (``stagedtypes``); "": as built.

    Raises:
        KeyError: the optimizer has another name.
    """
    graph, rates = timed_graph(graph, dtype), steady(rates_of(kind))
    passes = OPTIMIZER_PASSES[optimizer] if training else 0
    has_tf32 = tf32 and any(peak.dtype == "tf32" for peak in kind.peaks)
    forward = [[_in_tf32(work) if has_tf32 else work for work in layer.work] for layer in graph.layers]
    wanted = _wanted_gradients(graph) if training else ()
    backward = [
        [one for work in works for one in _backward(work, gradient)]
        for works, gradient in zip(forward, wanted, strict=False)
    ]
    times = _times([*forward, *backward], rates)
    num_layers = len(graph.layers)
    return KindProfile(
        kind=kind.name,
        origin="estimated",
        basis=_basis(graph, rates),
        forward_seconds=times[:num_layers],
        backward_seconds=tuple(
            time + (_memory_seconds(ACCUMULATION_PASSES * _trainable_bytes(layer, graph), rates) if one.any else 0.0)
            for time, layer, one in zip(times[num_layers:], graph.layers, wanted, strict=True)
        )
        if training
        else (0.0,) * num_layers,
        optimizer_seconds=tuple(
            _memory_seconds(passes * sum(weight.bytes for weight in weights), rates) for weights in _first_uses(graph)
        ),
        spread=(0.0,) * num_layers,
        computes_as=_computed_as(graph, kind), dtype=dtype,
    )


def _computed_as(graph: Graph, kind: Kind) -> tuple[tuple[str, str], ...]:
    """Half types of the layers that the kind has no rate for, and the type whose rate theirs is."""
    known = {peak.dtype for peak in kind.peaks}
    used = {work.dtype for layer in graph.layers for work in layer.work} & set(WIDENED)
    found = ((dtype, next((other for other, _ in FALLBACKS[dtype] if other in known), "")) for dtype in used - known)
    return tuple(sorted((dtype, other) for dtype, other in found if other))


def corrected(estimated: KindProfile, measured: KindProfile, estimated_there: KindProfile) -> KindProfile:
    """An estimate of one kind, improved by what was measured on another.

    A layer that took longer there than estimated is taken to do so here too, to the power of ``COMMON_SHARE``.

    Args:
        estimated: of the kind that is wanted.
        measured: of another kind, the same layers.
        estimated_there: of that other kind.
    """

    def improve(here: tuple[float, ...], real: tuple[float, ...], thought: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(
            time * _correction(one, other) for time, one, other in zip(here, real, thought, strict=True)
        )

    return replace(
        estimated,
        basis=f"{estimated.basis}; corrected by what was measured on {measured.kind}",
        forward_seconds=improve(
            estimated.forward_seconds, measured.forward_seconds, estimated_there.forward_seconds
        ),
        backward_seconds=improve(
            estimated.backward_seconds, measured.backward_seconds, estimated_there.backward_seconds
        ),
        optimizer_seconds=improve(
            estimated.optimizer_seconds, measured.optimizer_seconds, estimated_there.optimizer_seconds
        ),
    )


def _correction(measured: float, estimated: float) -> float:
    if measured <= 0 or estimated <= 0:
        return 1.0
    return float(min(max(measured / estimated, 1 / LARGEST_CORRECTION), LARGEST_CORRECTION) ** COMMON_SHARE)


def _times(layers: list[list[Work]], rates: Rates) -> tuple[float, ...]:
    """Sum of each layer's operators; equal operators are timed once."""
    numbers = {work: number for number, work in enumerate(dict.fromkeys(one for works in layers for one in works))}
    known = seconds(tuple(numbers), rates, shipped_laws()) if numbers else np.zeros(0)
    return tuple(float(sum(known[numbers[work]] for work in works)) for works in layers)


def _basis(graph: Graph, rates: Rates) -> str:
    """What the figures rest on, how far such figures were off, and what was assumed about data types."""
    errors = {error.what: error.mean for error in law_file().errors}
    operators = [error for error in law_file().errors if error.what.startswith("fp32")]
    of_operators = sum(error.rows * error.mean for error in operators) / max(1, sum(error.rows for error in operators))
    off = (
        f"on GPUs left out of the fit such estimates were off by {errors['whole model']:.0%} for whole models and "
        f"{of_operators:.0%} for single operators (mean)"
    )
    dtypes = sorted({work.dtype for layer in graph.layers for work in layer.work if work.flops})
    notes = dict.fromkeys(note for dtype in dtypes if (note := rates.rate(dtype).note))
    return "; ".join(("laws per operator family on data-sheet figures", off, *notes))


def _in_tf32(work: Work) -> Work:
    return replace(work, dtype="tf32") if work.family == "gemm" and work.dtype == "float32" else work


def _backward(work: Work, wanted: _Gradients) -> tuple[Work, ...]:
    if not wanted.any:
        return ()
    if work.family in ("gemm", "convolution"):
        return gradients(work, of_inputs=wanted.of_inputs, of_weights=wanted.of_weights)
    return gradients(work, of_inputs=True, of_weights=True)


def _wanted_gradients(graph: Graph) -> tuple[_Gradients, ...]:
    """Per layer, what of its backward runs.

    Nothing runs in a layer from which no gradient is asked.  An operator with weights computes two gradients, one of
    its input and one of its weights: with frozen weights, or in front of an input that wants no gradient, it is one.
    """
    entered: set[int] = set()
    left: set[int] = set()
    for value in graph.values:
        if value.differentiable:
            entered.update(value.consumers)
            left.add(value.producer)
    wanted = []
    for index, layer in enumerate(graph.layers):
        has_weights = any(not graph.weights[weight].is_buffer for weight in layer.weights)
        trains = any(graph.weights[weight].trainable for weight in layer.weights)
        runs = index in left and (index in entered or trains)
        second = trains or (not has_weights and index in entered)
        wanted.append(_Gradients(any=runs, of_inputs=index in entered, of_weights=second))
    return tuple(wanted)


def _trainable_bytes(layer: Layer, graph: Graph) -> int:
    return sum(graph.weights[index].bytes for index in layer.weights if graph.weights[index].trainable)


def _first_uses(graph: Graph) -> Iterable[tuple[Weight, ...]]:
    """Per layer, the trainable weights that no earlier layer uses: an optimizer updates a tied weight once."""
    seen: set[int] = set()
    for layer in graph.layers:
        new = [index for index in layer.weights if index not in seen and graph.weights[index].trainable]
        seen.update(new)
        yield tuple(graph.weights[index] for index in new)


def _memory_seconds(num_bytes: int, rates: Rates) -> float:
    return num_bytes / (shipped_laws().vector.efficiency * rates.bytes_per_second)
