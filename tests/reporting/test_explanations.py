from __future__ import annotations

from collections.abc import Callable

from autopart.reporting import explanation_text
from autopart.schema.explanation import CutTerms, Explanation, StageTerms
from tests.paper import a_plan


def an_explanation() -> Explanation:
    stages = tuple(
        StageTerms(
            index=stage.index, devices=stage.devices, num_layers=len(stage.layers), first_layer=stage.layers[0],
            last_layer=stage.layers[-1], forward_seconds=stage.forward_seconds, backward_seconds=0.0,
            receive_seconds=2e-4 * stage.index, stage_seconds=stage.forward_seconds + 2e-4 * stage.index,
            optimizer_seconds=0.0, slack_seconds=1.2e-3 * (1 - stage.index), memory=stage.memory,
            capacity_bytes=stage.capacity_bytes, free_bytes=stage.capacity_bytes - stage.peak_bytes,
        )
        for stage in a_plan().stages
    )
    cut = CutTerms(from_stage=0, to_stage=1, after_layer="h.1", before_layer="h.2", num_tensors=1, bytes=2_000_000,
                   forward_seconds=2e-4, backward_seconds=0.0, per_step_seconds=1.6e-3)
    return Explanation(
        num_microbatches=8, stages=stages, cuts=(cut,), bottleneck=1, one_microbatch_seconds=0.0032,
        repeated_seconds=0.0154, once_seconds=0.0, objective_seconds=0.0186, step_seconds=0.0188, bubble_fraction=0.24,
    )


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("explanation", explanation_text(an_explanation()))


def test_the_bottleneck_is_named_once_in_the_table() -> None:
    assert explanation_text(an_explanation()).count("bottleneck") == 1
