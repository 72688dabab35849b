"""Sizes that were derived and turn out otherwise: what the plan is of is always a real trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autopart import api, sizes
from autopart.errors import InfeasibleError
from autopart.schema.plan import Plan
from autopart.tracecache import Traced, derived, traced

TEXT = """
import torch
from torch import nn
def build_model():
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(2)))
def example_inputs():
    return (torch.rand(24, 64),)
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))


def planned(path: Path, **words: Any) -> Plan:
    text = path / "derived_model.py"
    text.write_text(TEXT)
    return api.plan_source(
        api.load_source(str(text), dtype=None, may_lack_weights=True), devices="2xt4", batch=24, verify=False, **words
    )


@pytest.fixture
def refuted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every derived graph claims a tenth of the work that a trace finds; the sizes that were."""
    found: list[int] = []

    def too_small(source: Any, one: Traced, other: Traced) -> Traced | None:
        made = derived(source, one, other)
        if made is None:
            return None
        found.append(made.graph.batch_size)
        layers = tuple(
            replace(layer, work=tuple(replace(each, flops=each.flops // 10) for each in layer.work), peak_bytes=1)
            for layer in made.graph.layers
        )
        return replace(made, graph=replace(made.graph, layers=layers))

    monkeypatch.setattr(sizes, "derived", too_small)
    return found


def test_a_refuted_derivation_is_planned_again_with_the_real_trace(tmp_path: Path, refuted: list[int]) -> None:
    misled = planned(tmp_path)
    assert refuted, "some sizes were derived"
    honest = planned(tmp_path, microbatches=misled.schedule.num_microbatches)
    assert misled.stages == honest.stages and misled.prediction == honest.prediction
    peaks = [stage.memory.workspace for stage in misled.stages]
    assert min(peaks) > 1, "no figure of the plan is of the derived graph"


def test_before_nothing_fits_is_said_all_sizes_are_traced(
    tmp_path: Path, refuted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[int] = []
    def counted(source: Any, **options: Any) -> Traced:
        made = traced(source, **options)
        settled.append(made.graph.batch_size)
        return made

    monkeypatch.setattr(sizes, "traced", counted)
    with pytest.raises(InfeasibleError):
        planned(tmp_path, max_memory=("t4=1KiB",))
    assert refuted and set(refuted) <= set(settled)
