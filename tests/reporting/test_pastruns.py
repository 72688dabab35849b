from __future__ import annotations

from autopart.pastruns import StageRun
from autopart.reporting import past_runs_text
from tests.paper import a_plan


def test_the_stage_furthest_off_comes_first_and_stages_that_did_not_run_are_left_out() -> None:
    plan = a_plan()

    def run(forward: float) -> StageRun:
        return StageRun(
            kind="rtx-4090", layers=plan.stages[0].layers, forward_seconds=forward, backward_seconds=0.0,
            predicted_forward_seconds=1e-3, predicted_backward_seconds=0.0,
        )

    text = past_runs_text(plan, (run(1.02e-3), run(0.8e-3)))
    assert text.index("-20.0 %") < text.index("+2.0 %")
    assert "embed" in text and "1.00 ms / 1.02 ms" in text
    assert "+2.0 %" not in past_runs_text(plan, (None, run(0.8e-3)))
    assert past_runs_text(plan, (None, None)) == ""
