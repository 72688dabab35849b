"""What is said of other requests holds when those are planned."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from autopart import modelsource
from autopart.modelsource import Source
from autopart.schema.advice import Advice
from autopart.schema.generation import Generation
from autopart.schema.plan import Plan
from autopart.verbs import plan_source

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("kept_traces")

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 3,
    "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 1000, "max_position_embeddings": 4096,
}
REQUESTS: dict[str, Any] = {"mode": "generate", "prompt_tokens": 1024, "new_tokens": 32, "concurrency": 16}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return modelsource.load(f"hf:{folder}", dtype="float16")


@pytest.fixture(scope="module")
def plan(source: Source, kept_traces: None) -> Plan:
    return plan_source(source, devices="2xl4", advice=True, **REQUESTS)


def advice(plan: Plan, code: str) -> list[Advice]:
    return [each for each in plan.advice if each.code == code]


def given(plan: Plan) -> Generation:
    assert plan.generation is not None
    return plan.generation


def test_more_requests_gain_what_planning_them_gives(source: Source, plan: Plan) -> None:
    (found,) = advice(plan, "concurrency")
    assert "raise --concurrency from 16 to 64" in found.message and found.basis == "solved"
    anew = given(plan_source(source, devices="2xl4", **REQUESTS | {"concurrency": 64}))
    assert found.gain == pytest.approx(anew.tokens_per_second / given(plan).tokens_per_second, rel=0.03)


def test_narrower_weights_gain_what_planning_them_gives(source: Source, plan: Plan) -> None:
    found = {each.message.split(":")[0]: each.gain for each in advice(plan, "weights")}
    assert set(found) == {"--weights int8", "--weights int4"}
    anew = given(plan_source(source, devices="2xl4", weights="int4", **REQUESTS))
    assert found["--weights int4"] == pytest.approx(anew.tokens_per_second / given(plan).tokens_per_second, rel=0.03)


def test_what_a_device_adds_to_text_is_what_is_lost_without_it(source: Source, plan: Plan) -> None:
    used = {name for stage in plan.stages for name in stage.devices}
    assert {"l4:0", "l4:1"} <= used
    found = next(each for each in advice(plan, "device-adds") if each.message.startswith("l4:1 adds"))
    anew = given(plan_source(source, devices="1xl4", **REQUESTS))
    share = given(plan).tokens_per_second / anew.tokens_per_second - 1
    assert float(found.message.split("adds ")[1].split("%")[0]) == pytest.approx(100 * share, abs=2)
    assert "a token of each request" in found.message
    pays = [each.message for each in advice(plan, "splitting")]
    assert any("splitting pays from" in each for each in pays) and any("alone" in each for each in pays)


def test_the_verdict_is_about_tokens(plan: Plan) -> None:
    assert "new tokens/s, a token of each request every " in plan.verdict and "a step" not in plan.verdict
    assert f"with {given(plan).num_groups} groups of requests" in plan.verdict


def test_halved_speed_of_all_that_is_used_doubles_a_token(plan: Plan) -> None:
    assert {each.quantity for each in plan.sensitivity} == {"speed", "bandwidth", "memory"}
    now = given(plan).time_per_output_token_seconds
    speed = next(each for each in plan.sensitivity if (each.quantity, each.of) == ("speed", "l4"))
    assert speed.halved.kept_seconds is not None and 1.3 * now < speed.halved.kept_seconds <= 2.01 * now


def test_where_all_memory_is_taken_that_is_said(source: Source) -> None:
    plan = plan_source(
        source, devices="1xl4", max_memory=("l4=0.9GB",), advice=True,
        **REQUESTS | {"concurrency": 8, "prompt_tokens": 2048, "new_tokens": 64},
    )
    (found,) = advice(plan, "concurrency")
    assert found.gain is None or "fit at once" in found.message


def test_of_the_first_token_other_things_are_said(source: Source) -> None:
    plan = plan_source(source, devices="2xl4", objective="latency", advice=True, **REQUESTS)
    assert not advice(plan, "concurrency") and plan.sensitivity
    assert dataclasses.replace(plan, advice=(), sensitivity=()) == dataclasses.replace(
        plan_source(source, devices="2xl4", objective="latency", **REQUESTS),
        proof=plan.proof,
    )
