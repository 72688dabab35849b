"""How far estimates of vision models are off on a card that is there: 5-fold over the models that ran on it.

    python -m tests.benchmarks.vision DIR [--json] [--works FILE] [--every N]

DIR holds models_timm.csv (RTX 3090, inference, mixed precision, NCHW).  The architectures come from timm, without
weights; their operators are booked on the meta device in float16, as mixed precision runs them, and timed by the
shipped laws.  A card that is there tells how the families of operators do on it: one factor per family is fitted to
four fifths of the models, and the other fifth is predicted.  Beside it the laws as shipped, without any factor, and the
plain roofline.  Attention is booked taken apart, though the card ran it fused.  Models that timm does not know or that
do not run on the meta device are counted and left out.  ``--works`` keeps the operators in a file; ``--every 4`` takes
every fourth model.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from tabulate import tabulate

from autopart.profiling import kind
from autopart.profiling.calibrating.leftout import roofline
from autopart.profiling.estimating.laws import shipped_laws
from autopart.profiling.estimating.leastsquares import Array, fit
from autopart.profiling.estimating.operators import seconds
from autopart.profiling.estimating.rates import rates_of, steady
from autopart.schema.graph import Work

FILE = "models_timm.csv"
CARD, SHEET = "RTX-3090", "rtx-3090"
FOLDS, SEED = 5, 0
GOAL = "mean <= 10 %"
WORKS = TypeAdapter(dict[str, tuple[Work, ...]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured model."""

    model: str
    batch: int
    img: int
    seconds: float

    @property
    def name(self) -> str:
        """One model ran at several sizes."""
        return f"{self.model} {self.batch} x {self.img}"


def main() -> None:
    """Prints the table, or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="directory of the calibration files")
    parser.add_argument("--works", type=Path, help="file that keeps the models' operators")
    parser.add_argument("--every", type=int, default=1, help="take every N-th model")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    options = parser.parse_args()
    runs = read_runs(options.folder / FILE)[:: options.every]
    works = operators_of(runs, options.works)
    there = [run for run in runs if works.get(run.name)]
    rows = compared(there, works)
    if options.json:
        print(json.dumps({"models": len(there), "left_out": len(runs) - len(there), "rows": rows}, indent=2))
        return
    print(f"{len(there)} models, {len(runs) - len(there)} left out: timm does not know them, or meta cannot run them")
    print(tabulate(rows, headers="keys", floatfmt=".1f"))


def read_runs(path: Path) -> list[Run]:
    """Inference in mixed precision, NCHW, on the card."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Run(model=row["model"], batch=int(row["batch"]), img=int(row["img"]), seconds=float(row["step_ms"]) / 1000)
            for row in csv.DictReader(file)
            if (row["gpu"], row["mode"], row["dtype"], row["layout"]) == (CARD, "infer", "amp", "nchw")
        ]


def operators_of(runs: Iterable[Run], path: Path | None) -> dict[str, tuple[Work, ...]]:
    """Run → its operators for the run's batch; empty where it cannot be had."""
    known = WORKS.validate_json(path.read_bytes()) if path is not None and path.exists() else {}
    for number, run in enumerate(runs):
        if run.name not in known:
            known[run.name] = _booked(run)
            if path is not None and number % 20 == 0:
                path.write_bytes(WORKS.dump_json(known))
    if path is not None:
        path.write_bytes(WORKS.dump_json(known))
    return known


def _booked(run: Run) -> tuple[Work, ...]:
    import timm

    from autopart.tracing.costing import booked

    try:
        with torch.device("meta"):
            model = timm.create_model(run.model, pretrained=False, exportable=True).eval().half()
            image = torch.empty(run.batch, 3, run.img, run.img, dtype=torch.float16)
        weights = tuple(model.state_dict().values())
        with torch.no_grad(), booked([image], weights) as recorded:
            model(image)
    except Exception as error:  # of timm or of a model's own code: it is counted and named
        print(f"{run.model}: {type(error).__name__}: {str(error).splitlines()[:1]}", file=sys.stderr)
        return ()
    return recorded.work


def compared(runs: Sequence[Run], works: Mapping[str, tuple[Work, ...]]) -> list[dict[str, str | float]]:
    """Errors in per cent: with the factors of the other folds, with none, and the roofline's."""
    measured = np.array([run.seconds for run in runs])
    parts = _parts([works[run.name] for run in runs])
    groups = {name: np.array([each.get(name, 0.0) for each in parts]) for name in sorted(set().union(*parts))}
    fold = np.random.default_rng(SEED).permutation(len(runs)) % FOLDS
    predicted = np.empty(len(runs))
    for number in range(FOLDS):
        rest = fold != number
        factors = _fitted({name: times[rest] for name, times in groups.items()}, measured[rest])
        predicted[~rest] = _summed({name: times[~rest] for name, times in groups.items()}, factors)
    plain = np.array([roofline(works[run.name], SHEET) for run in runs])
    shipped = _summed(groups, dict.fromkeys(groups, 1.0))
    return [
        _row(f"{FOLDS}-fold, a factor per family", predicted, measured, GOAL),
        _row("laws as shipped, no factor", shipped, measured, ""),
        _row("roofline", plain, measured, ""),
    ]


def _parts(models: Sequence[Sequence[Work]]) -> list[dict[str, float]]:
    """Per model: family → seconds by the shipped laws."""
    rates, laws = steady(rates_of(kind(SHEET))), shipped_laws()
    found = []
    for some in models:
        times: dict[str, float] = {}
        for work, one in zip(some, seconds(some, rates, laws).tolist(), strict=True):
            times[_group(work)] = times.get(_group(work), 0.0) + one
        found.append(times)
    return found


def _group(work: Work) -> str:
    """The family, convolutions by what bounds them."""
    if work.family != "convolution" or len(work.shape) != 7:
        return work.operator if work.operator in ("native_batch_norm", "native_layer_norm") else work.family
    _, channels, _, _, _, kernel, groups = work.shape
    if groups > 1:
        return "convolution, depthwise" if groups == channels else "convolution, grouped"
    return "convolution, 1 x 1" if kernel == 1 else "convolution, few channels" if channels < 8 else "convolution"


def _fitted(groups: Mapping[str, Array], measured: Array) -> dict[str, float]:
    return fit(lambda factors: _summed(groups, factors), measured, dict.fromkeys(groups, 1.0), prior=0.5, num_rounds=60)


def _summed(groups: Mapping[str, Array], factors: Mapping[str, float]) -> Array:
    return np.asarray(sum(factors[name] * times for name, times in groups.items()))


def _row(what: str, predicted: Array, measured: Array, goal: str) -> dict[str, str | float]:
    error = predicted / measured - 1
    return {
        "what": what, "mean %": 100 * float(np.abs(error).mean()), "median %": 100 * float(np.median(np.abs(error))),
        "bias %": 100 * float(error.mean()), "goal": goal,
    }  # fmt: skip


if __name__ == "__main__":
    main()
