"""Prefill and decode against first principles, and plans of text generation."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from autopart import modelsource, profiling
from autopart.errors import UsageError
from autopart.generating import steady
from autopart.generating.decoders import decoder_of
from autopart.generating.phases import Phases, distinct_experts, mixed
from autopart.modelsource import Source
from autopart.progress import silent
from autopart.schema.generation import Requests
from autopart.schema.graph import Graph
from autopart.schema.store import dump, parse
from autopart.tracecache import trace_source
from autopart.verbs import plan_source, same_model

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("kept_traces")

SMALL: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 500, "max_position_embeddings": 4096,
}
SEVEN: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 2,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
}
"""Llama 2 7B with two of its 32 layers, which are all alike"""
MIXTRAL: dict[str, Any] = {
    **SEVEN, "model_type": "mixtral", "num_hidden_layers": 1, "num_key_value_heads": 8, "intermediate_size": 14336,
    "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 512,
}


def source(folder: Path, config: dict[str, Any], dtype: str = "float16") -> Source:
    (folder / "config.json").write_text(json.dumps(config))
    return modelsource.load(f"hf:{folder}", dtype=dtype)


def phases(model: Source, **words: Any) -> Phases:
    requests = Requests(**({"prompt_tokens": 64, "new_tokens": 16, "concurrency": 1} | words))
    return steady._phases(model, decoder_of(model.model, model.name), requests, silent, False)


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source(tmp_path_factory.mktemp("seven"), SEVEN)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return source(tmp_path_factory.mktemp("small"), {**SMALL, "model_type": "llama"})


def seconds(graph: Graph, kind: str = "a100-sxm-80gb") -> float:
    row = profiling.estimate(graph, profiling.kind(kind), training=False, optimizer="none")
    return sum(row.forward_seconds)


def read_bytes(graph: Graph) -> int:
    """Weights without the table of embeddings, of which one row is read."""
    return graph.parameter_bytes - max(weight.bytes for weight in graph.weights if "embed_tokens" in weight.name)


@pytest.mark.parametrize("kind", ["a100-sxm-80gb", "l4", "rtx-4090"])
def test_decode_at_batch_1_takes_as_long_as_reading_the_weights(seven: Source, kind: str) -> None:
    graph = phases(seven).decode(1)
    floor = read_bytes(graph) / profiling.kind(kind).bandwidth_bytes_per_second.value
    assert floor <= seconds(graph, kind) <= 2 * floor


def test_four_bits_read_a_quarter(seven: Source) -> None:
    whole, quarter = phases(seven).decode(1), phases(seven, weights="int4").decode(1)
    head = 2 * 2 * 4096 * 32000  # embeddings and output head stay as they are
    assert (quarter.parameter_bytes - head) / (whole.parameter_bytes - head) == pytest.approx(4.25 / 16, rel=1e-2)
    layers = [sum(
        profiling.estimate(graph, profiling.kind("l4"), training=False, optimizer="none").forward_seconds[1:-1]
    ) for graph in (whole, quarter)]  # fmt: skip
    assert 0.25 <= layers[1] / layers[0] <= 0.4


def test_decoding_eight_at_once_takes_hardly_longer_than_one(seven: Source) -> None:
    both = phases(seven)
    assert seconds(both.decode(8)) < 1.3 * seconds(both.decode(1))
    assert seconds(both.decode(512)) > 2 * seconds(both.decode(1))


def test_prefill_does_what_a_forward_pass_over_the_prompt_does(small: Source) -> None:
    found = phases(small).prefill()
    import torch

    kwargs = {"input_ids": torch.zeros((1, 64), dtype=torch.long, device="meta"), "logits_to_keep": 1}
    traced = trace_source(dataclasses.replace(small, kwargs=kwargs), training=False).graph
    products, others = ([
        sum(work.flops for layer in graph.layers for work in layer.work if work.family == family)
        for family in ("gemm", "attention")
    ] for graph in (found, traced))  # fmt: skip
    assert products == others


@pytest.mark.parametrize(("heads", "shared"), [(8, 8), (8, 2)])
def test_cache_has_keys_and_values_of_the_heads_that_have_their_own(tmp_path: Path, heads: int, shared: int) -> None:
    model = source(tmp_path, {**SMALL, "model_type": "llama", "num_key_value_heads": shared})
    plan = plan_source(
        model, devices="1xl4", mode="generate", prompt_tokens=64, new_tokens=16, concurrency=4
    )
    cached = sum(stage.memory.kv_cache for stage in plan.stages)
    assert cached == 2 * 2 * shared * (64 // heads) * (64 + 16) * 2 * 4


def test_a_window_bounds_what_is_kept_and_looked_at(tmp_path: Path) -> None:
    windowed = phases(source(tmp_path, {**SMALL, "model_type": "mistral", "sliding_window": 20}))
    graph = windowed.decode(1)
    kept = sum(layer.cache_bytes_per_token or 0 for layer in graph.layers) * 80
    assert 0 <= kept - 2 * 2 * 2 * 8 * 20 * 2 < 2 * 80  # a byte per token is rounded up
    assert {work.shape[2] for layer in graph.layers for work in layer.work if work.family == "attention"} == {20}


def test_a_mixture_reads_the_experts_that_are_routed_to(tmp_path: Path) -> None:
    both = phases(source(tmp_path, MIXTRAL, "bfloat16"))

    def expert_bytes(num_requests: int) -> int:
        graph = both.decode(num_requests)
        works = [work for layer in graph.layers for work in layer.work if work.operator == "_grouped_mm"]
        return sum(work.traffic_bytes for work in works)

    active = 2 * 3 * 4096 * 14336 * 2  # experts per token, matrices, bytes
    assert expert_bytes(1) == pytest.approx(active, rel=1e-3)
    assert expert_bytes(64) == pytest.approx(4 * active, rel=1e-2)
    assert distinct_experts(8, 2, 1) == pytest.approx(2)
    assert distinct_experts(8, 2, 1000) == pytest.approx(8)


def test_a_round_has_its_share_of_the_prefills(small: Source) -> None:
    both = phases(small)
    decode, prefill = both.decode(2), both.prefill()
    whole = mixed(decode, prefill, 1)
    for one, other in zip(whole.values, prefill.values, strict=True):
        assert one.bytes == 2 * other.bytes
    assert all(one.peak_bytes >= other.peak_bytes for one, other in zip(whole.layers, prefill.layers, strict=True))


def test_a_plan_keeps_every_stage_busy_and_survives_a_file(small: Source) -> None:
    plan = plan_source(
        small, devices="2xl4", mode="generate", prompt_tokens=64, new_tokens=16, concurrency=4, stages=2,
        microbatches=2,
    )
    given = plan.generation
    assert given is not None
    assert given.num_groups == 2
    busy = [(15 * each.decode_seconds + 2 * each.prefill_seconds) / 16 for each in given.stages]
    assert given.time_per_output_token_seconds == pytest.approx(max(2 * max(busy), sum(busy)))
    assert given.tokens_per_second == pytest.approx(4 / given.time_per_output_token_seconds)
    assert plan.prediction.throughput_per_second == pytest.approx(given.tokens_per_second, rel=0.1)
    assert given.time_to_first_token_seconds == pytest.approx(sum(each.prefill_seconds for each in given.stages))
    assert parse(type(plan), dump(plan)) == plan
    with pytest.raises(UsageError, match="priced, not run"):
        same_model(plan, small.model)


def test_latency_is_the_time_to_the_first_token(small: Source) -> None:
    plan = plan_source(
        small, devices="2xl4", mode="generate", prompt_tokens=64, new_tokens=16, concurrency=4, objective="latency"
    )
    assert plan.generation is not None
    assert math.isclose(plan.prediction.latency_seconds, plan.generation.time_to_first_token_seconds)
    assert plan.generation.stages[0].cache_bytes > 0


@pytest.mark.parametrize(("words", "message"), [
    ({"batch": 4}, "--concurrency"),
    ({"tensor_parallel": 2}, "of one device a stage; leave --tensor-parallel out"),
    ({"stage_dtype": "auto"}, r"in the model's type \(float16.*; leave --stage-dtype out"),
    ({"objective": "cost"}, "throughput or latency"),
    ({"prompt_tokens": 0}, "prompt_tokens must be at least 1"),
    ({"prompt_tokens": 4096}, "knows 4096 positions"),
    ({"concurrency": 4, "microbatches": 3}, "do not divide"),
])  # fmt: skip
def test_what_cannot_be_planned_is_said(small: Source, words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_source(small, devices="1xl4", mode="generate", **words)


def test_other_states_than_a_cache_are_refused(tmp_path: Path) -> None:
    model = source(tmp_path, {**SMALL, "model_type": "llama"})
    config: Any = model.model.config
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UsageError, match="linear_attention"):
        decoder_of(model.model, "it")


@pytest.mark.parametrize(("concurrency", "devices", "counts"), [
    (8, 4, (1, 2, 4)), (8, 1, (1,)), (1, 4, (1,)), (7, 4, (1, 7)), (64, 8, (1, 2, 4, 8)), (96, 5, (1, 3, 4, 6)),
])  # fmt: skip
def test_groups_divide_the_requests(concurrency: int, devices: int, counts: tuple[int, ...]) -> None:
    assert steady.group_counts(concurrency, devices) == counts
