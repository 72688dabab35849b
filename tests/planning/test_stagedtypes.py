"""A transformers config in bfloat16 on cards of which one kind has no units for that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from autopart import verbs
from autopart.errors import InfeasibleError
from autopart.modelsource import Source, load
from autopart.schema.plan import Plan

CONFIG = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_layer": 2, "n_embd": 512, "n_head": 8,
    "n_positions": 256, "vocab_size": 1000,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("kept_traces")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return load(f"hf:{folder}", dtype="bfloat16")


def planned(source: Source, **words: Any) -> Plan:
    return verbs.plan_source(
        source, devices="a100-sxm-80gb,t4", batch=8, microbatches=1, dtype="bfloat16", stages=2, verify=False,
        pins=(("transformer.h.1.mlp", "t4:0"),), **words,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plans(source: Source, kept_traces: None) -> dict[str, Plan]:
    return {way: planned(source, stage_dtype=way) for way in ("keep", "auto")}


def test_another_type_is_suggested_where_it_keeps_the_limit_of_time(source: Source, plans: dict[str, Plan]) -> None:
    keep, auto = (plans[way].prediction.step_seconds for way in ("keep", "auto"))
    assert planned(source, stage_dtype="auto", max_step_seconds=(keep + auto) / 2).stages
    with pytest.raises(InfeasibleError, match=r"a step or less.*; or --stage-dtype auto, with which it fits$"):
        planned(source, max_step_seconds=(keep + auto) / 2)
    with pytest.raises(InfeasibleError, match=r"faster devices$"):
        planned(source, max_step_seconds=auto / 2)


def test_a_card_without_bfloat16_computes_in_float16_and_is_faster_so(plans: dict[str, Plan]) -> None:
    dtypes = {way: {stage.devices[0]: stage.dtype for stage in found.stages} for way, found in plans.items()}
    assert dtypes["keep"] == {"a100-sxm-80gb:0": "", "t4:0": ""}
    assert dtypes["auto"] == {"a100-sxm-80gb:0": "", "t4:0": "float16"}
    keep, auto = (plans[way].prediction.step_seconds for way in ("keep", "auto"))
    assert auto < 0.8 * keep


def test_each_way_says_what_it_does(plans: dict[str, Plan]) -> None:
    codes = {way: {each.code for each in found.warnings} for way, found in plans.items()}
    assert "no-such-dtype" in codes["keep"] and "stage-dtype" not in codes["keep"]
    assert "stage-dtype" in codes["auto"] and "no-such-dtype" not in codes["auto"]
