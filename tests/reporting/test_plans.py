from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from autopart.reporting import plan_text
from tests.paper import a_plan, one_device_plan


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("plan_infer", plan_text(a_plan()))
    golden("plan_train", plan_text(a_plan(training=True)))
    golden("plan_one_device", plan_text(one_device_plan()))


def test_the_order_is_the_one_people_ask_in() -> None:
    text = plan_text(a_plan())
    plan = a_plan()
    wanted = [
        plan.verdict, "utilisation", "Prediction", "Against simpler ways", "Proof", "Left out", "Warnings",
        "give --microbatches 16", "Times: estimated",
    ]
    places = [text.index(each) for each in wanted]
    assert text.startswith(plan.verdict)
    assert places == sorted(places)


def test_what_there_is_none_of_has_no_heading() -> None:
    text = plan_text(one_device_plan())
    for heading in ("Against simpler ways", "Left out", "Warnings"):
        assert heading not in text


@pytest.mark.parametrize(("outcome", "words"), [
    ("proven", "no plan that fits is more than"), ("feasible", "not proven to the end"),
    ("unproven-baseline", "a baseline was asked for"),
])
def test_every_outcome_has_its_words(outcome: str, words: str) -> None:
    plan = a_plan()
    plan = replace(plan, proof=replace(plan.proof, outcome=outcome))  # type: ignore[arg-type]
    assert words in plan_text(plan)


def test_every_layer_is_counted_once() -> None:
    text = plan_text(a_plan())
    assert "embed … h.1 (3)" in text and "h.2 … h.4 (3)" in text and "6 layers" in text


def test_a_proof_about_the_formula_says_so() -> None:
    plan = a_plan()
    assert "formula" not in plan_text(plan)
    assert "by the objective's formula" in plan_text(
        replace(plan, proof=replace(plan.proof, objective_seconds=0.019, bound_seconds=0.019))
    )
