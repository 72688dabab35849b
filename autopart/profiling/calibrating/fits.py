"""Fit the constants of each law to samples, from neutral starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from autopart.profiling.calibrating.calibrationdata import ModelRun, Sample
from autopart.profiling.devices.catalogue import kind
from autopart.profiling.estimating.convolution import Convolution, convolution_seconds
from autopart.profiling.estimating.laws import Attention, EventTiming, Laws
from autopart.profiling.estimating.leastsquares import Array, fit
from autopart.profiling.estimating.matrixproduct import MatrixProduct, Products, blend, product_seconds
from autopart.profiling.estimating.operators import convolution_rows, product_rows, vector_rows
from autopart.profiling.estimating.rates import Rates, rates_of
from autopart.profiling.estimating.vectors import VectorOperator, vector_seconds
from autopart.schema.graph import Work

__all__ = ["Fitted", "fit_all", "lone_seconds"]

PRODUCT = {
    "efficiency": 0.9, "tile_loss": 6.0, "pipeline": 8.0, "waves": 0.5, "memory_efficiency": 0.8, "blend": 1.5,
}  # fmt: skip
FULL_START_SECONDS, FULL_BURST, FULL_BURST_SECONDS = 6e-6, 0.3, 2e-3
HALF_START_SECONDS = 3e-6
HALF = {**PRODUCT, "pipeline": 20.0, "waves": 0.9, "blend": 2.0, "burst": 0.2, "burst_seconds": 1e-3}
CONVOLUTION = {
    "implicit_efficiency": 0.9, "fused_efficiency": 0.9, "staged_efficiency": 0.9, "tile_loss": 8.0, "pipeline": 8.0,
    "transform_traffic": 1.0, "weight_passes": 1.0, "channel_seconds": 1e-7, "staged_start_seconds": 3e-5,
    "choice": 8.0,
}  # fmt: skip
VECTOR = {
    "efficiency": 0.85, "softmax": 1.0, "softmax_long": 1.0, "odd_rows": 1.0, "normalization": 1.0,
}  # fmt: skip
VECTOR_EVENTS = {
    "elementwise": 3e-5, "softmax_floor": 3e-5, "normalization_floor": 3e-5, "start": 1e-5, "normalization_start": 1e-5,
    "vector_blend": 4.0,
}  # fmt: skip
VECTOR_START_SECONDS, VECTOR_BLEND = 3e-6, 4.0
"""of a kernel inside a model, and of its blend with the launch; assumed"""

CONVOLUTION_START_SECONDS = 1e-5
"""of a convolution inside a model; assumed"""

VECTOR_FAMILIES = ("elementwise", "softmax", "normalization")

MODEL_WEIGHT = 5.0
"""an operator measured in a model's shapes counts as much as so many of random shapes"""

HALF_ROWS = 100.0
"""rows that each kind of device counts as in the fit for half types, however many it has"""

LARGE_FLOPS = 4e10
"""half-type products of fewer FLOPs are as long as the processor takes to send them (ops_sailor_train.csv)"""

ASSUMED = {
    "convolution_half": 0.81,
    "depthwise_traffic": 1.7,
}
"""share of a product's rate and factor on traffic, found on an RTX 3090 by an earlier prototype (models_timm.csv)"""

ATTENTION = Attention(full_efficiency=0.6, half_efficiency=0.5)
"""assumed: fused attention is not in the data"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The constants of all laws and of the timing between events."""

    laws: Laws
    events: EventTiming


def fit_all(lone: Sequence[Sample], runs: Sequence[ModelRun], half: Sequence[Sample]) -> Fitted:
    """All constants.

    Args:
        lone: operators in float32 between events (``neusight_operators``).
        runs: models whose products are fitted beside the lone ones (``model_runs``).
        half: products in half types (``sailor_operators`` and ``vidur_operators``).
    """
    rates = _Rates()
    full, full_events = _fit_full([s for s in lone if s.work.family == "gemm"], _products_of(runs), rates)
    vector, vector_events = _fit_vector([s for s in lone if s.work.family in VECTOR_FAMILIES], _vectors_of(runs), rates)
    convolution, start = _fit_convolution([s for s in lone if s.work.family == "convolution"], rates)
    laws = Laws(
        product_full=full,
        product_half=_fit_half(half, rates),
        convolution=convolution,
        attention=ATTENTION,
        vector=vector,
        **ASSUMED,
    )
    return Fitted(laws=laws, events=EventTiming(**full_events, **vector_events, convolution_start=start))


def lone_seconds(samples: Sequence[Sample], fitted: Fitted) -> Array:
    """What lone operators in float32 would take between events."""
    result = np.empty(len(samples))
    rates = _Rates()
    for families, law in (
        (("gemm",), _lone_gemm), (("convolution",), _lone_convolutions), (VECTOR_FAMILIES, _lone_vectors)
    ):  # fmt: skip
        chosen = [index for index, sample in enumerate(samples) if sample.work.family in families]
        if chosen:
            result[chosen] = law([samples[index] for index in chosen], rates, fitted)
    return result


class _Rates(dict[str, Rates]):
    """Kind name → rates, looked up once."""

    def __missing__(self, name: str) -> Rates:
        self[name] = rates_of(kind(name))
        return self[name]


def _products_of(runs: Sequence[ModelRun]) -> list[Sample]:
    products = [sample for run in runs for sample in run.forward if sample.work.family == "gemm"]
    return [replace(sample, work=_one_call(sample.work)) for sample in products]


def _vectors_of(runs: Sequence[ModelRun]) -> list[Sample]:
    """Softmax and normalisation in a model's shapes, large enough that events hardly count."""
    return [
        replace(sample, work=_one_call(sample.work))
        for run in runs
        for sample in run.forward
        if sample.work.family in ("softmax", "normalization")
    ]


def _one_call(work: Work) -> Work:
    calls = work.num_calls
    return replace(work, num_calls=1, flops=work.flops // calls, traffic_bytes=work.traffic_bytes // calls)


def _measured(samples: Sequence[Sample]) -> Array:
    return np.array([sample.seconds for sample in samples])


def _product_table(samples: Sequence[Sample], rates: _Rates) -> Products:
    return product_rows([sample.work for sample in samples], [rates[sample.kind] for sample in samples])


def _fit_full(
    lone: Sequence[Sample], inside: Sequence[Sample], rates: _Rates
) -> tuple[MatrixProduct, dict[str, float]]:
    rows, rows_inside = _product_table(lone, rates), _product_table(inside, rates)
    weights = np.concatenate([np.ones(len(lone)), np.full(len(inside), MODEL_WEIGHT)])

    def predict(constants: Mapping[str, float]) -> Array:
        law = _full_law(constants)
        return np.concatenate([_lone_products(rows, lone, law, constants), product_seconds(rows_inside, law)])

    start = {**PRODUCT, "linear": 4e-5, "batched": 4e-5, "product_blend": 2.0}
    found = fit(predict, _measured([*lone, *inside]), start, weights=weights, num_rounds=60)
    return _full_law(found), {name: found[name] for name in ("linear", "batched", "product_blend")}


def _full_law(constants: Mapping[str, float]) -> MatrixProduct:
    return MatrixProduct(
        **{name: constants[name] for name in PRODUCT},
        start_seconds=FULL_START_SECONDS,
        burst=FULL_BURST,
        burst_seconds=FULL_BURST_SECONDS,
    )


def _lone_products(
    rows: Products, samples: Sequence[Sample], law: MatrixProduct, events: Mapping[str, float]
) -> Array:
    batched = np.array([sample.work.operator == "bmm" for sample in samples])
    floor = np.where(batched, events["batched"], events["linear"])
    return blend(events["product_blend"], floor, product_seconds(rows, law))


def _lone_gemm(samples: Sequence[Sample], rates: _Rates, fitted: Fitted) -> Array:
    return _lone_products(_product_table(samples, rates), samples, fitted.laws.product_full, asdict(fitted.events))


def _fit_half(samples: Sequence[Sample], rates: _Rates) -> MatrixProduct:
    used = [sample for sample in samples if sample.label.startswith("linear:") or sample.work.flops >= LARGE_FLOPS]
    rows = _product_table(used, rates)
    counts = {name: sum(sample.kind == name for sample in used) for name in {sample.kind for sample in used}}
    weights = np.array([HALF_ROWS / counts[sample.kind] for sample in used])

    def law(constants: Mapping[str, float]) -> MatrixProduct:
        return MatrixProduct(**constants, start_seconds=HALF_START_SECONDS)

    return law(fit(lambda c: product_seconds(rows, law(c)), _measured(used), HALF, weights=weights, num_rounds=60))


def _fit_vector(
    lone: Sequence[Sample], inside: Sequence[Sample], rates: _Rates
) -> tuple[VectorOperator, dict[str, float]]:
    samples = [*lone, *inside]
    weights = np.concatenate([np.ones(len(lone)), np.full(len(inside), MODEL_WEIGHT)])

    def law(constants: Mapping[str, float]) -> VectorOperator:
        named = {name: constants[name] for name in VECTOR}
        return VectorOperator(**named, start_seconds=VECTOR_START_SECONDS, blend=VECTOR_BLEND)

    def events(constants: Mapping[str, float]) -> dict[str, float]:
        return {name.removesuffix("_floor"): constants[name] for name in VECTOR_EVENTS}

    predict = _vector_predictor(samples, rates)
    start = {**VECTOR, **VECTOR_EVENTS}
    found = fit(lambda c: predict(law(c), events(c)), _measured(samples), start, weights=weights, num_rounds=60)
    return law(found), events(found)


def _vector_predictor(
    samples: Sequence[Sample], rates: _Rates
) -> Callable[[VectorOperator, Mapping[str, float]], Array]:
    rows = vector_rows([sample.work for sample in samples], [rates[sample.kind] for sample in samples])

    def predict(law: VectorOperator, events: Mapping[str, float]) -> Array:
        floor = np.where(rows.is_softmax, events["softmax"], events["elementwise"])
        floor = np.where(rows.is_normalization, events["normalization"], floor)
        start = np.where(rows.is_normalization, events["normalization_start"], events["start"])
        timed = replace(rows, launch_seconds=floor, start_seconds=start)
        return vector_seconds(timed, replace(law, blend=events["vector_blend"]))

    return predict


def _lone_vectors(samples: Sequence[Sample], rates: _Rates, fitted: Fitted) -> Array:
    return _vector_predictor(samples, rates)(fitted.laws.vector, asdict(fitted.events))


def _fit_convolution(samples: Sequence[Sample], rates: _Rates) -> tuple[Convolution, float]:
    def predict(constants: Mapping[str, float]) -> Array:
        return convolution_seconds(rows, law(constants)) + constants["start"] - CONVOLUTION_START_SECONDS

    def law(constants: Mapping[str, float]) -> Convolution:
        named = {name: constants[name] for name in CONVOLUTION}
        return Convolution(**named, start_seconds=CONVOLUTION_START_SECONDS, memory_efficiency=0.85)

    rows = convolution_rows([sample.work for sample in samples], [rates[sample.kind] for sample in samples])
    found = fit(predict, _measured(samples), {**CONVOLUTION, "start": 5e-5}, num_rounds=60)
    return law(found), found["start"] - CONVOLUTION_START_SECONDS


def _lone_convolutions(samples: Sequence[Sample], rates: _Rates, fitted: Fitted) -> Array:
    rows = convolution_rows([sample.work for sample in samples], [rates[sample.kind] for sample in samples])
    return np.asarray(convolution_seconds(rows, fitted.laws.convolution) + fitted.events.convolution_start)
