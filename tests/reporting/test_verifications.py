from __future__ import annotations

from dataclasses import replace

from autopart.reporting import plan_text
from tests.paper import CHECKS, a_plan


def test_checks_are_said_with_what_came_out() -> None:
    text = plan_text(a_plan())
    assert "Checks\n  values   skipped: the weights have no values (meta device)\n" in text
    assert f"  devices  passed: {CHECKS[1].detail}\n" in text


def test_a_plan_that_was_not_checked_says_so() -> None:
    assert "Checks\n  none: the split was not compared" in plan_text(replace(a_plan(), checks=()))
