from __future__ import annotations

from dataclasses import replace

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


def test_the_five_layers_that_are_off_by_most_seconds() -> None:
    plan = a_plan()
    layers = plan.stages[0].layers + plan.stages[1].layers
    run = StageRun(
        kind="rtx-4090", layers=layers, forward_seconds=2e-3, backward_seconds=0.0, predicted_forward_seconds=1e-3,
        predicted_backward_seconds=0.0, layer_seconds=(1e-3, 2e-3, 3.5e-3, 4e-3, 5e-3, 6.6e-3),
        predicted_layer_seconds=(1e-3, 2.1e-3, 3e-3, 4.3e-3, 5.2e-3, 6e-3),
    )
    text = past_runs_text(plan, (run, None)).partition("The 5 layers furthest off")[2]
    names = [line.split()[0] for line in text.splitlines()[3:]]
    assert names == [layers[index] for index in (5, 2, 3, 4, 1)]
    assert "6.00 ms / 6.60 ms" in text and "+10.0 %" in text
    unknown = replace(run, predicted_layer_seconds=())
    assert "layers furthest off, forward" not in past_runs_text(plan, (unknown, None))
