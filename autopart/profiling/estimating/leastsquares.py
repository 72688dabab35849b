"""Fit positive constants to measured times: damped least squares on relative errors, in numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "fit"]

Array: TypeAlias = NDArray[np.float64]
Predict: TypeAlias = Callable[[Mapping[str, float]], Array]

SOFTENING = 0.03
"""Relative errors below this count by their square, those above it by their size"""

STEP = 1e-3
"""of the logarithm of a constant, for the slope"""


def fit(
    predict: Predict,
    measured: Array,
    start: Mapping[str, float],
    *,
    weights: Array | None = None,
    prior: float = 2.0,
    num_rounds: int = 40,
) -> dict[str, float]:
    """The constants at which ``predict`` comes nearest to ``measured``, in mean absolute relative error.

    Levenberg-Marquardt (Marquardt, 1963) in the logarithms of the constants, rows reweighted each round so that a row
    counts by the size of its error and not by its square.  The error is 2·(sqrt(predicted / measured) - 1), between
    the relative error, which forgives predicting too little, and the logarithm.  The same input gives the same output.

    Args:
        predict: seconds of every row, given the constants.
        measured: seconds, positive.
        start: the constants' names and neutral values, positive.
        weights: what each row counts; all alike if None.
        prior: how strongly a constant is held to its start, as a number of rows that want it there.
        num_rounds: at most.
    """
    names = tuple(start)
    origin = np.log([start[name] for name in names])
    importance = np.ones_like(measured) if weights is None else weights

    def errors(at: Array) -> Array:
        found = predict(dict(zip(names, np.exp(at).tolist(), strict=True)))
        return np.asarray(2 * (np.sqrt(found / measured) - 1))

    def loss(error: Array, at: Array) -> float:
        return float(importance @ np.sqrt(error**2 + SOFTENING**2) + prior * ((at - origin) ** 2).sum())

    here, damping = origin.copy(), 1e-2
    error = errors(here)
    best = loss(error, here)
    for _ in range(num_rounds):
        slope = np.stack([(errors(here + STEP * unit) - error) / STEP for unit in np.eye(len(names))], axis=1)
        row_weights = importance / np.sqrt(error**2 + SOFTENING**2)
        normal = slope.T @ (row_weights[:, None] * slope) + 2 * prior * np.eye(len(names))
        pull = slope.T @ (row_weights * error) + 2 * prior * (here - origin)
        gained = 0.0
        for _ in range(8):
            scale = np.diag(np.maximum(np.diag(normal), 1e-9))
            there = here - np.clip(np.linalg.solve(normal + damping * scale, pull), -0.7, 0.7)
            new_error = errors(there)
            new = loss(new_error, there)
            if new < best:
                gained, here, error, best = best - new, there, new_error, new
                damping = max(damping / 4, 1e-6)
                break
            damping *= 5
        if gained < 1e-5 * best:
            break
    return dict(zip(names, np.exp(here).tolist(), strict=True))
