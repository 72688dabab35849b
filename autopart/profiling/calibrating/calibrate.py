"""Fit the constants of the estimates to published measurements and write them down with their errors.

    python -m autopart.profiling.calibrating.calibrate DIR [-o profiles/estimate.yaml]

DIR holds the CSV files that ``calibrationdata`` reads.  Nothing is random: the same files give the same constants.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from autopart.profiling.calibrating.fits import Fitted
from autopart.profiling.calibrating.leftout import Comparison, Data, compare_all, fit_on, pairs_of, read_data
from autopart.profiling.estimating.laws import FitError

__all__ = ["calibrate", "errors_by_subject", "fit_error", "left_out", "main"]

HEAD = """\
# The constants of the estimates, with how far they were off on devices that the fit had not seen (shares: 0.1 = 10 %).
# Written by `{command}`; see docs/accuracy.md.  Seconds, shares and plain numbers.
"""
COMMAND = "python -m autopart.profiling.calibrating.calibrate DIR"


def main() -> None:
    """Reads the data, fits, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="directory of the calibration files")
    default = Path(__file__).parents[3] / "profiles" / "estimate.yaml"
    parser.add_argument("-o", "--output", type=Path, default=default)
    options = parser.parse_args()
    options.output.write_text(calibrate(options.folder), encoding="utf-8")
    print(f"wrote {options.output}")


def calibrate(folder: Path) -> str:
    """The content of profiles/estimate.yaml, fitted to the files of a directory.

    Raises:
        FileFormatError: a file is missing.
    """
    data = read_data(folder)
    fitted = fit_on(data)
    errors = [asdict(error) for error in errors_by_subject(left_out(data))]
    content = {"command": COMMAND, "laws": asdict(fitted.laws), "events": asdict(fitted.events), "errors": errors}
    return HEAD.format(command=COMMAND) + yaml.safe_dump(_rounded(content), sort_keys=False, width=110)


def left_out(data: Data) -> tuple[Comparison, ...]:
    """Every comparison, each group of kinds with constants that were fitted without it, from the neutral start."""

    @cache
    def fitted_for(group: str) -> Fitted:
        return fit_on(data.without(group))

    return (*compare_all(data, fitted_for), pairs_of(data, fitted_for))


def errors_by_subject(comparisons: Iterable[Comparison]) -> tuple[FitError, ...]:
    """One error for each subject, over all its kinds."""
    by_subject: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_subject.setdefault(comparison.what, []).append(comparison)
    return tuple(fit_error(what, some) for what, some in by_subject.items())


def fit_error(what: str, comparisons: Iterable[Comparison]) -> FitError:
    """Mean and median absolute relative error and mean relative error over all rows."""
    some = tuple(comparisons)
    predicted = np.concatenate([comparison.predicted for comparison in some])
    relative = predicted / np.concatenate([comparison.measured for comparison in some]) - 1
    return FitError(
        what=what,
        how="each GPU left out of the fit",
        rows=len(relative),
        mean=float(np.abs(relative).mean()),
        median=float(np.median(np.abs(relative))),
        bias=float(relative.mean()),
    )


def _rounded(content: Any) -> Any:
    """Five significant digits: the rest is noise and differs between processors."""
    if isinstance(content, dict):
        return {name: _rounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return float(f"{content:.5g}") if isinstance(content, float) else content


if __name__ == "__main__":
    main()
