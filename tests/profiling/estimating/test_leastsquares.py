from __future__ import annotations

import numpy as np
import pytest

from autopart.profiling.estimating.leastsquares import fit

X = np.linspace(1, 100, 50)


def test_finds_the_constants_of_exact_data() -> None:
    found = fit(lambda c: c["a"] + c["b"] * X, 3.0 + 0.25 * X, {"a": 1.0, "b": 1.0}, prior=0.0)
    assert found == pytest.approx({"a": 3.0, "b": 0.25}, rel=1e-3)


def test_an_outlier_hardly_counts() -> None:
    measured = 3.0 + 0.25 * X
    measured[10] *= 20
    found = fit(lambda c: c["a"] + c["b"] * X, measured, {"a": 1.0, "b": 1.0}, prior=0.0)
    assert found == pytest.approx({"a": 3.0, "b": 0.25}, rel=0.02)


def test_what_the_data_do_not_decide_stays_at_its_start() -> None:
    found = fit(lambda c: c["a"] * X + 0 * c["idle"], 2 * X, {"a": 1.0, "idle": 7.0})
    assert found["idle"] == pytest.approx(7.0)
    assert found["a"] == pytest.approx(2.0, rel=0.1)


def test_the_same_input_gives_the_same_output() -> None:
    noisy = (3 + X) * (1 + 0.1 * np.sin(37 * X))
    results = [fit(lambda c: c["a"] + c["b"] * X, noisy, {"a": 1.0, "b": 2.0}) for _ in range(2)]
    assert results[0] == results[1]
