"""How far the laws are off: of devices that the fit has not seen, beside the plain roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from autopart.profiling.calibrating.calibrationdata import (
    ModelRun,
    Sample,
    model_runs,
    neusight_operators,
    sailor_operators,
    vidur_operators,
)
from autopart.profiling.calibrating.fits import LARGE_FLOPS, Fitted, fit_all, lone_seconds
from autopart.profiling.calibrating.trainingblocks import TrainingBlock, training_blocks
from autopart.profiling.devices.catalogue import kind
from autopart.profiling.estimating.laws import Laws
from autopart.profiling.estimating.leastsquares import Array
from autopart.profiling.estimating.matrixproduct import product_seconds
from autopart.profiling.estimating.operators import ACCUMULATION_PASSES, gradients, product_rows, seconds
from autopart.profiling.estimating.rates import Rates, rates_of, steady
from autopart.schema.graph import Work

__all__ = ["Comparison", "Data", "compare_all", "fit_on", "group_of", "pairs_of", "read_data",
           "run_seconds", "training_seconds"]

Anything = TypeVar("Anything")

FAMILIES = {
    "linear": "fp32 linear",
    "bmm": "fp32 batched",
    "conv": "fp32 convolution",
    "softmax": "fp32 softmax",
    "ln": "fp32 layer norm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The samples of a data directory."""

    lone: tuple[Sample, ...]
    runs: tuple[ModelRun, ...]
    half: tuple[Sample, ...]
    blocks: tuple[TrainingBlock, ...]

    def without(self, group: str) -> Data:
        """All but one group of kinds."""

        def keep(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
            return tuple(sample for sample in samples if group_of(sample.kind) != group)

        return Data(
            lone=keep(self.lone),
            runs=tuple(run for run in self.runs if group_of(run.kind) != group),
            half=keep(self.half),
            blocks=self.blocks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Predicted beside measured, in seconds (speed ratios: plain numbers), one row each."""

    what: str
    kind: str
    """of the catalogue, or a pair of kinds"""
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    roofline: tuple[float, ...]


def read_data(folder: Path, *, complete: bool = True) -> Data:
    """All samples of a data directory.

    Args:
        folder: of the CSV files.
        complete: a missing file is an error; else it counts as empty.

    Raises:
        FileFormatError: a file is missing.
    """

    def read(reader: Callable[[Path], tuple[Anything, ...]], *names: str) -> tuple[Anything, ...]:
        return reader(folder) if complete or all((folder / name).is_file() for name in names) else ()

    half = (*read(sailor_operators, "ops_sailor_train.csv"), *read(vidur_operators, "ops_vidur_fp16.csv"))
    return Data(
        lone=read(neusight_operators, "ops_neusight_fp32.csv"),
        runs=read(model_runs, "models_neusight_fp32.csv", "modelops_neusight_fp32.csv"),
        half=tuple(sample for sample in half if sample.work.dtype == "float16"),
        blocks=read(training_blocks, "layers_sailor_train.csv"),
    )


def group_of(kind_name: str) -> str:
    """Kinds that leave together: all forms of one chip."""
    return kind_name.split("-")[0]


def fit_on(data: Data) -> Fitted:
    """The constants fitted to data."""
    return fit_all(data.lone, data.runs, data.half)


def compare_all(data: Data, fitted_for: Callable[[str], Fitted]) -> tuple[Comparison, ...]:
    """Every comparison of the data.

    Args:
        data: what was measured.
        fitted_for: the constants to use for a group of kinds (``group_of``): fitted without it, or always the same.
    """
    return tuple(
        comparison
        for name in sorted({sample.kind for sample in (*data.lone, *data.half)})
        for comparison in (*_operators(data, name, fitted_for), *_half(data, name, fitted_for))
    ) + tuple(
        comparison
        for name in sorted({run.kind for run in data.runs} | {block.kind for block in data.blocks})
        for comparison in (*_models(data, name, fitted_for), *_blocks(data, name, fitted_for))
    )


def pairs_of(data: Data, fitted_for: Callable[[str], Fitted]) -> Comparison:
    """Speed ratios of two kinds that ran the same model, predicted and measured."""
    runs = [(run, run_seconds(run, fitted_for(group_of(run.kind)).laws)) for run in data.runs]
    rows = [
        (one_seconds / other_seconds, _total(one) / _total(other), _roofline_run(one) / _roofline_run(other))
        for (one, one_seconds), (other, other_seconds) in combinations(runs, 2)
        if one.name == other.name and one.kind != other.kind
    ]
    predicted, measured, roofline = zip(*rows, strict=True) if rows else ((), (), ())
    return Comparison(
        what="speed ratio of two kinds", kind="all pairs", predicted=predicted, measured=measured, roofline=roofline
    )


def training_seconds(
    works: Sequence[Work], parameter_bytes: int, rates: Rates, laws: Laws, *, training: bool
) -> tuple[float, float]:
    """Forward and backward of a chain of operators inside a model."""
    forward = float(seconds(works, rates, laws).sum())
    if not training:
        return forward, 0.0
    back = [one for work in works for one in gradients(work, of_inputs=True, of_weights=True)]
    accumulate = ACCUMULATION_PASSES * parameter_bytes / (laws.vector.efficiency * rates.bytes_per_second)
    return forward, float(seconds(back, rates, laws).sum()) + accumulate


def run_seconds(run: ModelRun, laws: Laws, *, architecture_factors: bool = True) -> float:
    """What a whole model would take."""
    rates = steady(_rates(run.kind, architecture_factors))
    works = [sample.work for sample in run.forward]
    return sum(training_seconds(works, run.parameter_bytes, rates, laws, training=run.training))


@cache
def _rates(name: str, architecture_factors: bool = True) -> Rates:
    return rates_of(kind(name), architecture_factors=architecture_factors)


def _operators(data: Data, name: str, fitted_for: Callable[[str], Fitted]) -> Iterable[Comparison]:
    samples = [sample for sample in data.lone if sample.kind == name]
    for what in dict.fromkeys(FAMILIES.get(sample.label, "fp32 elementwise") for sample in samples):
        some = [sample for sample in samples if FAMILIES.get(sample.label, "fp32 elementwise") == what]
        yield _of_samples(what, name, some, lone_seconds(some, fitted_for(group_of(name))))


def _half(data: Data, name: str, fitted_for: Callable[[str], Fitted]) -> Iterable[Comparison]:
    samples = [sample for sample in data.half if sample.kind == name]
    for what, some in (
        ("fp16 product, large", [sample for sample in samples if sample.work.flops >= LARGE_FLOPS]),
        ("fp16 product, small", [sample for sample in samples if sample.work.flops < LARGE_FLOPS]),
    ):
        if some:
            rows = product_rows([sample.work for sample in some], [_rates(name)] * len(some))
            yield _of_samples(what, name, some, product_seconds(rows, fitted_for(group_of(name)).laws.product_half))


def _of_samples(what: str, name: str, samples: Sequence[Sample], predicted: Array) -> Comparison:
    return Comparison(
        what=what,
        kind=name,
        predicted=tuple(predicted.tolist()),
        measured=tuple(sample.seconds for sample in samples),
        roofline=tuple(roofline([sample.work], name) for sample in samples),
    )


def _models(data: Data, name: str, fitted_for: Callable[[str], Fitted]) -> Iterable[Comparison]:
    runs = [run for run in data.runs if run.kind == name]
    for what, factors in (("whole model", True), ("whole model, no architecture factors", False)):
        if runs:
            laws = fitted_for(group_of(name)).laws
            yield Comparison(
                what=what,
                kind=name,
                predicted=tuple(run_seconds(run, laws, architecture_factors=factors) for run in runs),
                measured=tuple(map(_total, runs)),
                roofline=tuple(map(_roofline_run, runs)),
            )


def _blocks(data: Data, name: str, fitted_for: Callable[[str], Fitted]) -> Iterable[Comparison]:
    blocks = [block for block in data.blocks if block.kind == name]
    if blocks:
        laws, rates = fitted_for(group_of(name)).laws, steady(_rates(name))
        yield Comparison(
            what="training block",
            kind=name,
            predicted=tuple(
                sum(training_seconds(block.works, block.parameter_bytes, rates, laws, training=True))
                for block in blocks
            ),
            measured=tuple(block.forward_seconds + block.backward_seconds for block in blocks),
            roofline=tuple(3 * roofline(block.works, name) for block in blocks),
        )


def _total(run: ModelRun) -> float:
    return run.forward_seconds + run.backward_seconds


def _roofline_run(run: ModelRun) -> float:
    return (3 if run.training else 1) * roofline([sample.work for sample in run.forward], run.kind)


def roofline(works: Sequence[Work], name: str) -> float:
    """The longer of FLOPs at the data sheet's peak and traffic at its bandwidth (Williams et al., CACM 2009)."""
    one = kind(name)
    peaks = {peak.dtype: peak.flops_per_second.value for peak in one.peaks}
    bandwidth = one.bandwidth_bytes_per_second.value
    return sum(
        max(work.flops / peaks.get(work.dtype, peaks["float32"]), work.traffic_bytes / bandwidth) for work in works
    )
