"""How long operators take on a device, by the law of their family; forward ones and the ones of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from autopart.profiling.estimating.convolution import Convolutions, convolution_seconds
from autopart.profiling.estimating.laws import Laws
from autopart.profiling.estimating.leastsquares import Array
from autopart.profiling.estimating.matrixproduct import MatrixProduct, Products, blend, product_seconds
from autopart.profiling.estimating.rates import Rate, Rates
from autopart.profiling.estimating.vectors import Vectors, vector_seconds
from autopart.schema.graph import Work

__all__ = ["ACCUMULATION_PASSES", "BACKWARD_TRAFFIC", "convolution_rows", "gradients", "product_rows", "seconds",
           "vector_rows"]

BACKWARD_TRAFFIC: Mapping[str, float] = {
    "_softmax": 2.75,
    "softmax": 2.75,
    "dropout": 2.4,  # as three operators, mask and all
    "native_dropout": 0.9,
    "gelu": 1.5,
    "tanh": 1.5,
    "where": 1.25,
    "pow": 3.0,
    "maximum": 5.0,  # two comparisons, a halving, a choice and a fill, as torch's derivative is written
    "add": 0.0,
    "add_": 0.0,
    "sub": 0.5,
    "normalization": 3.0,
    "reduction": 1.0,
    "embedding": 3.0,
    "copy": 1.0,
    "attention": 1.0,
}
"""traffic of the backward / of the forward operator, every operand once, by operator or else by family; from the rows
of modelops_neusight_fp32.csv (softmax 5.5 tensors, layer norm 6, pow 6, tanh, gelu and where 3, dropout 6.5 of 2.75)
and ops_sailor_train.csv (dropout in one kernel)"""

ACCUMULATION_PASSES = 3
"""reads and writes of every trainable weight when a micro-batch's gradient is added (modelops_neusight_fp32.csv)"""

OTHER_BACKWARD_TRAFFIC = 1.5
"""of operators that are not listed, assumed"""

BACKWARD_ATTENTION = 2.5
"""FLOPs backward / forward: the scores are computed again (Dao, FlashAttention-2, 2023)"""

MATRIX_HEADROOM = 1.5
"""matrix units at work draw more power than any card sustains: short products run faster (A100, V100, Titan RTX)"""

DEPTHWISE_CHANNELS = 8
"""channels per group under which a convolution is bound by memory"""


def seconds(works: Sequence[Work], rates: Rates, laws: Laws) -> Array:
    """Time of all calls of each work: its law's, but not less than a launch each."""
    single = [_one_call(work) for work in works]
    by_law: dict[str, list[int]] = {}
    for index, work in enumerate(single):
        by_law.setdefault(_law_name(work, rates), []).append(index)
    result = np.zeros(len(works))
    for name, indices in by_law.items():
        kernel = _LAWS[name]([single[index] for index in indices], rates, laws)
        result[indices] = np.maximum(kernel, rates.launch_seconds)
    return np.asarray(result * np.array([max(work.num_calls, 1) for work in works], dtype=float))


def _law_name(work: Work, rates: Rates) -> str:
    matrix_units = rates.rate(work.dtype).on_matrix_units
    if work.family == "gemm":
        return "product on matrix units" if matrix_units else "product"
    if work.family == "convolution" and work.flops:
        if len(work.shape) == 7 and work.shape[6] > 1 and work.shape[1] // work.shape[6] < DEPTHWISE_CHANNELS:
            return "depthwise"
        if matrix_units:
            return "convolution on matrix units"
        return "convolution" if len(work.shape) == 7 and work.shape[6] == 1 else "unrolled"
    return "attention" if work.family == "attention" else "vector"


def _products(works: Sequence[Work], rates: Rates, law: MatrixProduct) -> Array:
    return product_seconds(product_rows(works, [rates] * len(works)), law)


def _on_matrix_units(works: Sequence[Work], rates: Rates, laws: Laws) -> Array:
    slower = replace(laws.product_half, efficiency=laws.product_half.efficiency * laws.convolution_half)
    return _products([_unrolled(work) for work in works], rates, slower)


def _depthwise(works: Sequence[Work], rates: Rates, laws: Laws) -> Array:
    moved = [replace(work, traffic_bytes=int(laws.depthwise_traffic * work.traffic_bytes)) for work in works]
    return _vectors(moved, rates, laws)


def _vectors(works: Sequence[Work], rates: Rates, laws: Laws) -> Array:
    return vector_seconds(vector_rows(works, [rates] * len(works)), laws.vector)


def _attention(works: Sequence[Work], rates: Rates, laws: Laws) -> Array:
    device = [rates.rate(work.dtype) for work in works]
    law = laws.attention
    reached = [
        rate.sustained * (law.half_efficiency if rate.on_matrix_units else law.full_efficiency) for rate in device
    ]
    compute = np.array([work.flops for work in works]) / np.array(reached)
    traffic = np.array([work.traffic_bytes for work in works])
    memory = traffic / (laws.vector.efficiency * rates.bytes_per_second)
    return laws.vector.start_seconds + blend(ATTENTION_BLEND, compute, memory)


ATTENTION_BLEND = 2.0

_LAWS: Mapping[str, Callable[[Sequence[Work], Rates, Laws], Array]] = {
    "product": lambda works, rates, laws: _products(works, rates, laws.product_full),
    "product on matrix units": lambda works, rates, laws: _products(works, rates, laws.product_half),
    "convolution": lambda works, rates, laws: convolution_seconds(
        convolution_rows(works, [rates] * len(works)), laws.convolution
    ),
    "convolution on matrix units": _on_matrix_units,
    "unrolled": lambda works, rates, laws: _products([_unrolled(work) for work in works], rates, laws.product_full),
    "depthwise": _depthwise,
    "attention": _attention,
    "vector": _vectors,
}


def gradients(work: Work, *, of_inputs: bool, of_weights: bool) -> tuple[Work, ...]:
    """The operators that compute the gradients of what ``work`` read.

    Args:
        work: a forward operator.
        of_inputs: whether a gradient goes back to the inputs.
        of_weights: whether the layer's weights learn.
    """
    num_gradients = int(of_inputs) + int(of_weights)
    if not num_gradients:
        return ()
    if work.family in ("gemm", "convolution"):
        return tuple(_gradient(work, of_weights=which) for which in (False, True) if (of_inputs, of_weights)[which])
    if work.family == "attention":
        scale = BACKWARD_ATTENTION
        traffic = 3 * work.traffic_bytes
        return (replace(work, flops=int(scale * work.flops), traffic_bytes=traffic),)
    scale = BACKWARD_TRAFFIC.get(work.operator, BACKWARD_TRAFFIC.get(work.family, OTHER_BACKWARD_TRAFFIC))
    if work.operator in ("mul", "div") and work.shape:
        scale = 1.0 if work.shape[0] == 1 else 2.0
    if not scale:
        return ()
    return (replace(work, family="elementwise", operator="", shape=(), traffic_bytes=int(scale * work.traffic_bytes)),)


def _gradient(work: Work, *, of_weights: bool) -> Work:
    """A product's gradient is a product with m, n, k exchanged; a convolution's a convolution."""
    if work.family == "gemm" and len(work.shape) == 4:
        batch, m, n, k = work.shape
        return replace(work, shape=(batch, k, n, m) if of_weights else (batch, m, k, n))
    if work.family == "convolution" and work.shape and not of_weights:
        samples, channels_in, channels_out, size_in, size_out, kernel, groups = work.shape
        return replace(work, shape=(samples, channels_out, channels_in, size_out, size_in, kernel, groups))
    return work


def product_rows(works: Sequence[Work], rates: Sequence[Rates]) -> Products:
    """The matrix products of single calls, each on its device; one of unknown shape counts as cubic."""
    shapes = np.array([_product_shape(work) for work in works], dtype=float).reshape(-1, 4)
    device = [rate.rate(work.dtype) for work, rate in zip(works, rates, strict=True)]
    batched = [
        0 if shape[0] == 1 or rate.rate(work.dtype).on_matrix_units else 2 if rate.big_batch_tiles else 1
        for shape, work, rate in zip(shapes, works, rates, strict=True)
    ]
    return Products(
        batch=shapes[:, 0],
        m=shapes[:, 1],
        n=shapes[:, 2],
        k=shapes[:, 3],
        traffic_bytes=np.array([work.traffic_bytes for work in works], dtype=float),
        flops_per_second=np.array([rate.sustained for rate in device]),
        headroom=np.array([_headroom(rate) for rate in device]),
        bytes_per_second=np.array([rate.bytes_per_second for rate in rates]),
        num_units=np.array([rate.num_units for rate in rates]),
        batched_float32=np.array(batched, dtype=float),
        long_contraction=np.where(shapes[:, 0] == 1, [rate.long_contraction for rate in rates], np.inf),
    )


def _headroom(rate: Rate) -> float:
    ratio = rate.burst / rate.sustained
    return max(ratio, MATRIX_HEADROOM) if rate.on_matrix_units else ratio


def _product_shape(work: Work) -> tuple[float, ...]:
    if len(work.shape) == 4:
        return tuple(float(size) for size in work.shape)
    side = max(1.0, (work.flops / 2) ** (1 / 3))
    return (1.0, side, side, side)


def vector_rows(works: Sequence[Work], rates: Sequence[Rates]) -> Vectors:
    """The other operators' single calls, each on its device."""
    return Vectors(
        traffic_bytes=np.array([work.traffic_bytes for work in works], dtype=float),
        row_length=np.array([work.shape[1] if len(work.shape) == 2 else 0 for work in works], dtype=float),
        is_softmax=np.array([work.family == "softmax" for work in works]),
        is_normalization=np.array([work.family == "normalization" for work in works]),
        bytes_per_second=np.array([rate.bytes_per_second for rate in rates]),
        launch_seconds=np.array([rate.launch_seconds for rate in rates]),
        start_seconds=np.zeros(len(works)),
    )


def _unrolled(work: Work) -> Work:
    """The matrix product that a convolution amounts to."""
    if len(work.shape) != 7:
        return work
    samples, channels_in, channels_out, _, size_out, kernel, groups = work.shape
    return replace(
        work,
        shape=(groups, samples * size_out, max(1, channels_out // groups), max(1, channels_in // groups) * kernel),
    )


def convolution_rows(works: Sequence[Work], rates: Sequence[Rates]) -> Convolutions:
    """The dense convolutions of single calls, each on its device."""
    shapes = np.array([work.shape for work in works], dtype=float)
    device = [rate.rate(work.dtype) for work, rate in zip(works, rates, strict=True)]
    return Convolutions(
        samples=shapes[:, 0],
        channels_in=shapes[:, 1],
        channels_out=shapes[:, 2],
        height=np.sqrt(shapes[:, 4]),
        kernel=shapes[:, 5],
        is_winograd=(shapes[:, 5] == 9) & (shapes[:, 3] == shapes[:, 4]),
        traffic_bytes=np.array([work.traffic_bytes for work in works], dtype=float),
        flops_per_second=np.array([rate.sustained for rate in device]),
        headroom=np.array([rate.burst / rate.sustained for rate in device]),
        bytes_per_second=np.array([rate.bytes_per_second for rate in rates]),
        num_units=np.array([rate.num_units for rate in rates]),
    )


def _one_call(work: Work) -> Work:
    calls = max(work.num_calls, 1)
    if calls == 1:
        return work
    return replace(work, num_calls=1, flops=work.flops // calls, traffic_bytes=work.traffic_bytes // calls)
