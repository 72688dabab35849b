from __future__ import annotations

import dataclasses
from collections.abc import Callable

from autopart.reporting import measurement_text
from autopart.schema.measurement import Compression
from autopart.schema.plan import PlanWarning
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


def test_what_codecs_saved_is_said() -> None:
    found = Compression(codec="int8", sent_bytes=532_000, plain_bytes=2_100_000, loss_change=-0.0123)
    text = measurement_text(dataclasses.replace(a_measurement(training=True), compression=found), a_plan(training=True))
    assert "532 kB of 2.10 MB, 74.7 % saved" in text
    assert "-1.230 % against the unsplit model's" in text
    unknown = dataclasses.replace(found, loss_change=None)
    text = measurement_text(dataclasses.replace(a_measurement(training=True), compression=unknown), a_plan())
    assert "change not known: the unsplit model was not run beside it" in text
    text = measurement_text(dataclasses.replace(a_measurement(), compression=unknown), a_plan())
    assert "532 kB" in text and "loss" not in text.split("Compression")[1]


def test_what_was_waited_for_is_told_and_advice_for_several_devices_said_once() -> None:
    found = a_measurement()
    stages = tuple(dataclasses.replace(each, receive_seconds=0.25, sent_bytes=2_000_000) for each in found.stages)
    warnings = tuple(PlanWarning(code="x", message=f"{name} idles", suggestion="do it") for name in "ab")
    text = measurement_text(dataclasses.replace(found, stages=stages, warnings=warnings), a_plan())
    assert "waits to receive" in text and "250 ms" in text and "2.00 MB" in text and "bubble" in text
    assert "  a idles\n  b idles\n    → do it\n" in text
    assert "waits to receive" not in measurement_text(found, a_plan())


def test_what_was_emulated_is_said() -> None:
    notes = ("Emulated: old at 0.5 of a core.", "Links slowed down: a-b.")
    text = measurement_text(dataclasses.replace(a_measurement(), emulation=notes), a_plan())
    assert "Emulated: old at 0.5 of a core.\nLinks slowed down: a-b.\n" in text
