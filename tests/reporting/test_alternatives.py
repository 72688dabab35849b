from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from autopart import planning
from autopart.reporting import alternatives_text, layer_text, stage_text
from autopart.reporting.memoryterms import memory_columns, memory_rows
from autopart.schema.alternatives import CutAlternative, LayerTerms, LayerTimes
from autopart.units import parse_bytes
from tests.paper import a_plan

LAYER = LayerTerms(
    name="h.2", index=3, stage=1, devices=("rtx-4090:1",), share=0.25,
    times=(
        LayerTimes(kind="rtx-4090", origin="measured", basis="torch 2.13.0, 5 repeats", forward_seconds=5e-4,
                   backward_seconds=1e-3, optimizer_seconds=0.0),
        LayerTimes(kind="t4", origin="estimated", basis="data sheet", forward_seconds=4e-3, backward_seconds=8e-3,
                   optimizer_seconds=0.0),
    ),
    num_parameters=16_777_216, weight_bytes=67_108_864, saved_bytes=4_000_000, peak_bytes=9_000_000,
    flops=34_000_000_000, families=("gemm", "elementwise"), bytes_before=2_000_000, bytes_after=None,
)


def test_golden(golden: Callable[[str, str], None]) -> None:
    plan = a_plan(training=True)
    golden("explain_stage", stage_text(planning.explain(plan), plan, 1))
    golden("explain_layer", layer_text(LAYER))
    golden("explain_alternatives", alternatives_text((
        CutAlternative(to_stage=1, after_layer="h.1", before_layer="h.2", cuts=("h.2 | h.3",), step_seconds=0.02,
                       factor=1.064),
        CutAlternative(to_stage=2, after_layer="h.3", before_layer="h.4", reason="no plan fits in memory"),
    )))


def test_the_memory_terms_shown_add_up_to_what_is_needed() -> None:
    memory = replace(a_plan(training=True).stages[0].memory, loss=7_000_000, not_at_once=2_000_000)
    shown = [parse_bytes(size.removeprefix("-")) * (-1) ** size.startswith("-") for _, size in memory_rows(memory)]
    assert sum(shown) == memory.total
    names, (row,) = memory_columns([memory])
    assert dict(zip(names, row, strict=True)) == dict(memory_rows(memory))


def test_a_stage_that_is_not_the_bottleneck_says_what_it_lacks() -> None:
    plan = a_plan()
    text = stage_text(planning.explain(plan), plan, 0)
    assert "less than the bottleneck, stage 1" in text and "0 → 1" in text
