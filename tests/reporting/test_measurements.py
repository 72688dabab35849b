from __future__ import annotations

from collections.abc import Callable

from autopart.reporting import measurement_text
from tests.paper import a_measurement, a_plan


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("measurement_infer", measurement_text(a_measurement(), a_plan()))
    golden("measurement_train", measurement_text(a_measurement(training=True), a_plan(training=True)))
    golden("measurement_alone", measurement_text(a_measurement(single=False), a_plan()))


def test_predicted_and_measured_stand_side_by_side() -> None:
    text = measurement_text(a_measurement(), a_plan())
    (line,) = [line for line in text.splitlines() if line.startswith("step (median)")]
    assert line.split("  ")[0] == "step (median)" and "18.8 ms" in line and "20.0 ms" in line and "+6.4 %" in line


def test_without_a_single_run_it_says_why() -> None:
    assert "no single-device run: --no-single" in measurement_text(a_measurement(single=False), a_plan())
