"""Sets of devices side by side, on devices that are not here, so that all is exact."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autopart import modelsource
from autopart.cli.main import main
from autopart.comparing.sets import compare_source, mark_pareto, row_of
from autopart.errors import UsageError
from autopart.modelsource import Source
from autopart.reporting import comparison_text
from autopart.schema.comparison import Comparison, DeviceSet
from autopart.schema.store import dump, parse
from autopart.verbs import plan_source
from tests.paper import a_plan


@pytest.fixture(scope="module")
def source() -> Source:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8)))
        return Source(model=model, args=(torch.empty(512, 4096),), kwargs={}, name="stack", text="")


pytestmark = pytest.mark.usefixtures("kept_traces")


@pytest.fixture(scope="module")
def compared(source: Source, kept_traces: None) -> Comparison:
    return compare_source(source, ("1xl4", "2xl4", "2xl4,1xt4", "1xt4"), max_memory=("t4=100MB",))


def by_name(found: Comparison) -> dict[str, DeviceSet]:
    return {each.name: each for each in found.sets}


def test_sets_are_sorted_and_what_does_not_fit_is_last_with_the_reason(compared: Comparison) -> None:
    speeds = [each.throughput_per_second or 0.0 for each in compared.sets]
    assert speeds == sorted(speeds, reverse=True)
    assert compared.sets[-1].name == "1xt4" and "short by" in compared.sets[-1].reason
    assert all(each.fits for each in compared.sets[:-1])


def test_a_row_is_the_plans_figures() -> None:
    row = row_of("mine", a_plan())
    plan = a_plan()
    assert (row.throughput_per_second, row.latency_seconds) == (
        plan.prediction.throughput_per_second, plan.prediction.latency_seconds
    )
    assert row.headroom_bytes == 24 * 10**9 - 375_000_000 and row.bottleneck == "rtx-4090:1"
    assert row.left_out == ("t4:0",) and row.rent_usd_per_hour is None


def test_what_a_device_adds_is_the_ratio_to_the_set_without_it(compared: Comparison) -> None:
    rows = by_name(compared)
    (added,) = rows["2xl4"].adds
    one, two = rows["1xl4"].throughput_per_second or 0.0, rows["2xl4"].throughput_per_second or 0.0
    assert added.kind == "l4" and added.factor == pytest.approx(two / one)
    assert rows["1xl4"].adds == ()


def test_it_is_the_same_every_time_and_can_be_kept(source: Source, compared: Comparison) -> None:
    again = compare_source(source, ("1xl4", "2xl4", "2xl4,1xt4", "1xt4"), max_memory=("t4=100MB",))
    assert dump(again) == dump(compared)
    assert parse(Comparison, dump(compared)) == compared


def test_the_catalogue_is_searched_within_the_budget(source: Source) -> None:
    found = compare_source(source, catalogue="budget 0.95 $/h", most_sets=3)
    assert len(found.sets) == 3 and found.criteria == ("throughput", "rent")
    assert all((each.rent_usd_per_hour or 9) <= 0.95 for each in found.sets)
    assert any(each.pareto for each in found.sets)
    assert "were not planned" in found.remarks[0]


def test_a_cluster_file_is_a_set_too(source: Source, tmp_path: Path) -> None:
    (file := tmp_path / "rack.yaml").write_text("devices:\n  - {name: old, kind: t4, count: 2, memory: 8GiB}\n")
    (row,) = compare_source(source, (str(file),)).sets
    assert row.name == str(file) and set(row.used) <= {"old0", "old1"} and row.fits


def test_generation_is_compared_by_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = {
        "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 1024, "vocab_size": 2000, "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = modelsource.load(f"hf:{tmp_path}", dtype="float16")
    words: dict[str, Any] = {"mode": "generate", "prompt_tokens": 64, "new_tokens": 16, "concurrency": 4}
    found = compare_source(model, ("1xrtx-4090", "2xrtx-4090"), **words)
    one, two = (next(each for each in found.sets if each.name == name) for name in ("1xrtx-4090", "2xrtx-4090"))
    alone = plan_source(model, devices="1xrtx-4090", **words).generation
    assert alone is not None and found.requests == alone.requests and found.job.batch == 4
    assert one.throughput_per_second == alone.tokens_per_second
    assert one.latency_seconds == alone.time_to_first_token_seconds
    assert one.step_token_seconds == alone.time_per_output_token_seconds
    assert one.cost_per_million == pytest.approx((one.rent_usd_per_hour or 0) / 3600 / alone.tokens_per_second * 1e6)
    assert two.adds or two.left_out
    text = comparison_text(found)
    assert "tokens/s" in text and "$/million tokens" in text and "samples" not in text and "first token" in text


def test_what_a_sample_of_tokens_costs_is_said_of_tokens_too(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 500, "n_positions": 128,
    }))
    found = compare_source(modelsource.load(f"hf:{tmp_path}"), ("1xrtx-4090",))
    (row,) = found.sets
    assert found.tokens_per_sample == 128 and row.cost_per_million is not None
    assert row.cost_per_million_tokens == row.cost_per_million / 128
    assert "$/million samples" in comparison_text(found) and "$/million tokens" in comparison_text(found)


def test_nothing_to_compare_is_an_error(source: Source) -> None:
    with pytest.raises(UsageError, match="nothing to compare"):
        compare_source(source)


def a_set(name: str, throughput: float, rent: float) -> DeviceSet:
    return dataclasses.replace(
        row_of(name, a_plan()), throughput_per_second=throughput, rent_usd_per_hour=rent
    )


points = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8)


@given(points)
def test_pareto_marks_exactly_what_no_other_beats(values: list[tuple[int, int]]) -> None:
    rows = [a_set(str(at), float(speed), float(rent)) for at, (speed, rent) in enumerate(values)]
    marked = mark_pareto(rows, ("throughput", "rent"))
    for (speed, rent), row in zip(values, marked, strict=True):
        better = [(s, r) for s, r in values if s >= speed and r <= rent and (s, r) != (speed, rent)]
        assert row.pareto == (not better)
    assert any(row.pareto for row in marked)


MODEL = """
import torch
from torch import nn
def build_model():
    return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
def example_inputs():
    return (torch.rand(8, 256),)
"""


def test_the_command_prints_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "small.py").write_text(MODEL)
    words = ["compare", str(file), "-d", "1xl4", "-d", "2xl4"]
    assert main(words) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]  # nobody looks: tab-separated
    assert rows[0][0] == "name" and {row[0] for row in rows[1:]} == {"1xl4", "2xl4"}
    assert {len(row) for row in rows} == {len(rows[0])}
    picture = tmp_path / "sets.svg"
    assert main([*words, "--format", "text", "--plot", str(picture)]) == 0
    assert "2xl4" in picture.read_text()
    assert capsys.readouterr().out.startswith("Fastest: ")
    assert main([*words, "--json", "-o", str(tmp_path / "c.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {each["name"] for each in document["sets"]} == {"1xl4", "2xl4"}
    assert json.loads((tmp_path / "c.json").read_text()) == document
    assert main([*words, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("name,num_devices,reason,used")
    assert main([*words, "--format", "markdown"]) == 0
    assert "| 1xl4" in capsys.readouterr().out
