"""How far the estimates are off, for each calibration file, each GPU left out of the fit in turn.

    python -m tests.benchmarks.accuracy DIR [--json] [--fit DIR | --shipped]

DIR holds the calibration files.  A GPU's error is that of constants fitted to the others from a neutral start (all
forms of the A100 leave together); beside it the plain roofline.  ``--fit OTHER`` fits on the files of another directory
and leaves out there what is measured in DIR; ``--shipped`` takes the constants as they are in profiles/estimate.yaml,
for data that they were not fitted to; with either, DIR need not hold every file.  Collectives are 5-fold over message
sizes within one topology.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from tabulate import tabulate

from autopart.profiling.calibrating.calibrate import fit_error, left_out
from autopart.profiling.calibrating.calibrationdata import FILES
from autopart.profiling.calibrating.collectives import COLLECTIVES, collective_times, fit_line
from autopart.profiling.calibrating.fits import Fitted
from autopart.profiling.calibrating.leftout import Comparison, Data, compare_all, fit_on, pairs_of, read_data
from autopart.profiling.estimating.laws import law_file

FOLDS = 5
GOALS = {
    "fp16 product, large": "mean of A100, V100, Titan <= 6 %",
    "fp32 operators": "mean <= 17 %",
    "fp32 convolution": "mean <= 22 %",
    "whole model": "mean <= 7 %, T4 and P100 <= 8 %",
    "speed ratio of two kinds": "median <= 8 %",
    "training block": "mean <= 9 %",
    "collective": "mean <= 7 %",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Errors of one subject on one kind, or on all of them; shares."""

    what: str
    kind: str
    rows: int
    mean: float
    median: float
    bias: float
    roofline_mean: float | None
    goal: str = ""


def main() -> None:
    """Prints the table, or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="directory of the calibration files")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--fit", type=Path, metavar="DIR", help="fit on the files of this directory instead")
    source.add_argument("--shipped", action="store_true", help="use the shipped constants for every GPU")
    options = parser.parse_args()
    data = read_data(options.folder, complete=not options.shipped and options.fit is None)
    rows = _tabled(_comparisons(data, options.fit, options.shipped))
    if (options.folder / COLLECTIVES).is_file():
        rows += _collectives(options.folder)
    for name in sorted(name for name in FILES if not (options.folder / name).is_file()):
        print(f"not in {options.folder}, left out: {name}", file=sys.stderr)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(tabulate([_printed(row) for row in rows], headers="keys", disable_numparse=True))


def _printed(row: Row) -> dict[str, str | int]:
    roofline = "" if row.roofline_mean is None else f"{100 * row.roofline_mean:.1f}"
    return {
        "what": row.what,
        "device": row.kind,
        "rows": row.rows,
        "mean %": f"{100 * row.mean:.1f}",
        "median %": f"{100 * row.median:.1f}",
        "bias %": f"{100 * row.bias:+.1f}",
        "roofline, mean %": roofline,
        "goal": row.goal,
    }


def _comparisons(data: Data, fit_folder: Path | None, shipped: bool) -> tuple[Comparison, ...]:
    if not shipped and fit_folder is None:
        return left_out(data)
    fitted_for = _shipped if shipped else _fitter(read_data(fit_folder or Path()))
    pairs = pairs_of(data, fitted_for)
    return (*compare_all(data, fitted_for), *((pairs,) if pairs.predicted else ()))


def _shipped(group: str) -> Fitted:
    return Fitted(laws=law_file().laws, events=law_file().events)


def _fitter(data: Data) -> Callable[[str], Fitted]:
    @cache
    def fitted_for(group: str) -> Fitted:
        return fit_on(data.without(group))

    return fitted_for


def _tabled(comparisons: tuple[Comparison, ...]) -> tuple[Row, ...]:
    rows = []
    for what in dict.fromkeys(comparison.what for comparison in comparisons):
        some = tuple(comparison for comparison in comparisons if comparison.what == what)
        rows += [_row(what, comparison.kind, (comparison,)) for comparison in some] if len(some) > 1 else []
        rows.append(_row(what, "all", some))
    operators = tuple(comparison for comparison in comparisons if comparison.what.startswith("fp32"))
    return (*rows, _row("fp32 operators", "all", operators)) if operators else tuple(rows)


def _row(what: str, kind: str, some: tuple[Comparison, ...]) -> Row:
    error = fit_error(what, some)
    baseline = fit_error(what, tuple(replace(comparison, predicted=comparison.roofline) for comparison in some))
    return Row(
        what=what, kind=kind, rows=error.rows, mean=error.mean, median=error.median, bias=error.bias,
        roofline_mean=baseline.mean, goal=GOALS.get(what, "") if kind == "all" else "",
    )  # fmt: skip


def _collectives(folder: Path) -> tuple[Row, ...]:
    """Per kind and over all: every fold predicted by the line through the other folds."""
    found: dict[str, list[Comparison]] = {}
    for times in collective_times(folder):
        sizes, seconds = np.array(times.num_bytes), np.array(times.seconds)
        predicted, fold = np.empty_like(seconds), np.arange(len(seconds)) % FOLDS
        for number in range(FOLDS):
            out = fold == number
            predicted[out] = fit_line(sizes[~out], seconds[~out]).seconds(sizes[out])
        comparison = Comparison(
            what="collective", kind=times.kind, predicted=tuple(predicted), measured=times.seconds, roofline=()
        )
        found.setdefault(times.kind, []).append(comparison)
    rows = []
    everything = [comparison for some in found.values() for comparison in some]
    for kind, chosen in (*found.items(), ("all", everything)):
        error = fit_error("collective", chosen)
        rows.append(
            Row(
                what="collective", kind=kind, rows=error.rows, mean=error.mean, median=error.median, bias=error.bias,
                roofline_mean=None, goal=GOALS["collective"] if kind == "all" else "",
            )
        )  # fmt: skip
    return tuple(rows)


if __name__ == "__main__":
    main()
