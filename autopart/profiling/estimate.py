"""How long the layers take on a kind of device that is not here, from its data sheet: one law per operator family.

The law of a family (Williams et al., Roofline, CACM 2009, with a blend in place of the maximum):

    t = (overhead^p + compute^p + memory^p)^(1/p)
    compute = FLOPs / (e_c · R),   R = min(peak, TDP · FLOP/s per watt of a full-power card of that architecture)
    memory  = bytes / (e_m · bandwidth)

with the efficiencies e_c, e_m and p of ``LAWS`` and an overhead of one kernel launch per operator.  For operators that
compute, the overhead stands outside the blend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autopart.profiling.rates import Rates, rates_of
from autopart.schema.device import Kind
from autopart.schema.graph import Graph, Layer, Weight, Work
from autopart.schema.profile import KindProfile

__all__ = ["LAWS", "OPTIMIZER_PASSES", "Law", "estimate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The constants of one operator family."""

    compute_efficiency: float = 1.0
    """share of the sustained rate, float32"""
    half_efficiency: float = 1.0
    """the same for types below 32 bits, which run on matrix units"""
    memory_efficiency: float = 0.83
    blend: float = 1.64
    traffic_factor: float = 1.0
    """real traffic / every operand once"""
    backward_compute: float = 2.0
    """FLOPs backward / forward"""
    backward_traffic: float = 2.0
    source: str


VECTOR = "elementwise operators of ops_neusight_fp32.csv: p = 1.64, e_m = .83"

LAWS: Mapping[str, Law] = {
    "gemm": Law(
        compute_efficiency=0.92,
        half_efficiency=0.78,
        memory_efficiency=0.80,
        blend=1.7,
        source="large GEMM reaches .79-.90 of the float32 peak and .70-.75 of the float16 peak; backward 1.8-2.0",
    ),
    "attention": Law(
        compute_efficiency=0.60,
        half_efficiency=0.50,
        memory_efficiency=0.80,
        blend=1.7,
        backward_compute=2.5,
        source="assumed for one fused kernel; backward computes the scores again (Dao, FlashAttention-2, 2023)",
    ),
    "convolution": Law(
        compute_efficiency=0.75,
        half_efficiency=0.63,
        memory_efficiency=0.80,
        blend=1.7,
        source="dense convolution .81 of the GEMM rate (models_timm.csv, RTX 3090)",
    ),
    "normalization": Law(traffic_factor=1.25, backward_traffic=3.0, source=f"{VECTOR}; traffic x 1.25, backward 3"),
    "softmax": Law(backward_traffic=1.4, source=f"{VECTOR}; backward 1.4"),
    "elementwise": Law(backward_traffic=1.5, source=f"{VECTOR}; backward of GELU 1.9, of dropout .6-.9, of add 0"),
    "reduction": Law(backward_traffic=1.0, source=f"{VECTOR}; backward assumed to write what forward reads"),
    "embedding": Law(backward_traffic=2.0, source=f"{VECTOR}; backward adds into the table"),
    "copy": Law(backward_traffic=1.0, source=VECTOR),
    "other": Law(backward_traffic=1.5, source=f"{VECTOR}; as elementwise"),
}
"""family → law"""

COMPUTES = frozenset({"gemm", "attention", "convolution"})

ACCUMULATION_PASSES = 3
"""reads and writes of every trainable weight when a micro-batch's gradient is added (modelops_neusight_fp32.csv)"""

OPTIMIZER_PASSES: Mapping[str, int] = {"adamw": 20, "adam": 18, "sgd": 3, "none": 0}
"""reads and writes of every trainable weight's bytes in a step of torch's multi-tensor optimizers, one operator after
the other: AdamW decays (2), averages the gradient (3) and its square (2 + 3), takes the root (2), divides by the bias
correction (2), adds epsilon (2) and updates (4); a fused step would take 7"""


def estimate(graph: Graph, kind: Kind, *, training: bool, optimizer: str) -> KindProfile:
    """Forward, backward and optimizer times of every layer of ``graph`` on a device of ``kind``.

    Args:
        graph: one micro-batch.
        kind: of the catalogue, or the user's own.
        training: whether backward and optimizer count; else they are zero.
        optimizer: adamw, adam, sgd or none.

    Raises:
        KeyError: the optimizer has another name.
    """
    rates = rates_of(kind)
    passes = OPTIMIZER_PASSES[optimizer] if training else 0
    num_layers = len(graph.layers)
    shares = _backward_shares(graph) if training else ((0.0, 0.0),) * num_layers
    dtypes = sorted({work.dtype for layer in graph.layers for work in layer.work if work.flops})
    notes = tuple(dict.fromkeys(note for dtype in dtypes if (note := rates.note(dtype))))
    return KindProfile(
        kind=kind.name,
        origin="estimated",
        basis="; ".join(("one law per operator family on data-sheet figures", *notes)),
        forward_seconds=tuple(sum(_forward(work, rates) for work in layer.work) for layer in graph.layers),
        backward_seconds=tuple(
            _backward(layer, graph, rates, *share) for layer, share in zip(graph.layers, shares, strict=True)
        ),
        optimizer_seconds=tuple(
            _memory_seconds(passes * sum(weight.bytes for weight in weights), rates)
            for weights in _first_uses(graph)
        ),
        spread=(0.0,) * num_layers,
    )


def _forward(work: Work, rates: Rates) -> float:
    return _seconds(work, rates, num_calls=work.num_calls, compute=1.0, traffic=1.0)


def _seconds(work: Work, rates: Rates, *, num_calls: float, compute: float, traffic: float) -> float:
    """The law for the work of one family, its FLOPs and its traffic scaled."""
    law = LAWS.get(work.family, LAWS["other"])
    on_matrix_units = work.dtype in ("float16", "bfloat16", "int8") or work.dtype.startswith("float8")
    efficiency = law.half_efficiency if on_matrix_units else law.compute_efficiency
    overhead = num_calls * rates.launch_seconds
    compute_seconds = compute * work.flops / (efficiency * rates.flops_per_second(work.dtype))
    memory_seconds = traffic * law.traffic_factor * work.traffic_bytes / (
        law.memory_efficiency * rates.bandwidth_bytes_per_second
    )
    if work.family in COMPUTES:
        return overhead + _blend(law.blend, compute_seconds, memory_seconds)
    return _blend(law.blend, overhead, compute_seconds, memory_seconds)


def _blend(exponent: float, *seconds: float) -> float:
    """The p-norm: near the largest, somewhat above it where two are alike."""
    longest = max(seconds)
    if longest == 0:
        return 0.0
    return float(longest * sum((part / longest) ** exponent for part in seconds) ** (1 / exponent))


def _backward(layer: Layer, graph: Graph, rates: Rates, on_weights: float, on_vectors: float) -> float:
    """Backward of one micro-batch; ``on_weights`` scales the operators that have two gradients, the rest the others."""
    total = 0.0
    for work in layer.work:
        law = LAWS.get(work.family, LAWS["other"])
        share = on_weights if work.family in ("gemm", "convolution") else on_vectors
        if share:
            total += _seconds(
                work,
                rates,
                num_calls=work.num_calls * (2 * share if work.family in COMPUTES else share),
                compute=law.backward_compute * share,
                traffic=law.backward_traffic * share,
            )
    if on_weights or on_vectors:
        trainable = sum(weight.bytes for weight in _trainable(layer, graph))
        total += _memory_seconds(ACCUMULATION_PASSES * trainable, rates)
    return total


def _backward_shares(graph: Graph) -> tuple[tuple[float, float], ...]:
    """Per layer, how much of a full backward runs: of operators with weights, and of the others.

    Nothing runs in a layer from which no gradient is asked.  An operator with weights computes two gradients, one of
    its input and one of its weights: with frozen weights, or in front of an input that wants no gradient, it is one.
    """
    entered: set[int] = set()
    left: set[int] = set()
    for value in graph.values:
        if value.differentiable:
            entered.update(value.consumers)
            left.add(value.producer)
    return tuple(
        _backward_share(layer, graph, index in entered, index in left) for index, layer in enumerate(graph.layers)
    )


def _backward_share(layer: Layer, graph: Graph, entered: bool, left: bool) -> tuple[float, float]:
    has_weights = any(not graph.weights[index].is_buffer for index in layer.weights)
    trains = bool(_trainable(layer, graph))
    if not left or not (entered or trains):
        return 0.0, 0.0
    both = entered and (trains or not has_weights)
    return (1.0 if both else 0.5), 1.0


def _trainable(layer: Layer, graph: Graph) -> tuple[Weight, ...]:
    return tuple(graph.weights[index] for index in layer.weights if graph.weights[index].trainable)


def _first_uses(graph: Graph) -> tuple[tuple[Weight, ...], ...]:
    """Per layer, the trainable weights that no earlier layer uses: an optimizer updates a tied weight once."""
    seen: set[int] = set()
    uses = []
    for layer in graph.layers:
        new = [index for index in layer.weights if index not in seen and graph.weights[index].trainable]
        seen.update(new)
        uses.append(tuple(graph.weights[index] for index in new))
    return tuple(uses)


def _memory_seconds(num_bytes: int, rates: Rates) -> float:
    return num_bytes / (LAWS["elementwise"].memory_efficiency * rates.bandwidth_bytes_per_second)
