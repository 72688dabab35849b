from __future__ import annotations

import shlex
import types
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import UsageError
from autopart.exporting import FORMATS, export
from autopart.schema.plan import Plan
from tests.exporting.plans import cpu_first, decoder, with_layers

stage_counts = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def variable(text: str, name: str) -> str:
    return next(word for word in shlex.split(text, comments=True) if word.startswith(f"{name}=")).partition("=")[2]


def option(text: str, name: str) -> str:
    words = shlex.split(text, comments=True)
    return words[words.index(name) + 1]


def vllm_ranks(partition: str, num_layers: int) -> list[int]:
    """The rank of every layer, as vllm/distributed/utils.py get_pp_indices reads the variable."""
    parts = [int(each) for each in partition.split(",")]
    assert sum(parts) == num_layers
    return [rank for rank, number in enumerate(parts) for _ in range(number)]


def llama_devices(split: list[float], num_layers: int, num_gpu_layers: int) -> list[int | str]:
    """The device of every layer and of the output, as llama.cpp's load_tensors finds it: upper_bound of shares."""
    shares = [sum(split[: index + 1]) / sum(split) for index in range(len(split))]
    start = max(num_layers + 1 - num_gpu_layers, 0)
    num = min(num_gpu_layers, num_layers + 1)
    return [
        "cpu" if at < start else next(i for i, share in enumerate(shares) if share > (at - start) / num)
        for at in range(num_layers + 1)
    ]


@given(stage_counts)
def test_vllm_gets_every_block_on_the_plans_stage(counts: list[int]) -> None:
    text = export(decoder(counts), "vllm")
    ranks = vllm_ranks(variable(text, "VLLM_PP_LAYER_PARTITION"), sum(counts))
    assert Counter(ranks) == dict(enumerate(counts))
    assert option(text, "--pipeline-parallel-size") == str(len(counts))


@given(stage_counts)
def test_llamacpp_gets_every_block_on_the_plans_device(counts: list[int]) -> None:
    text = export(decoder(counts), "llamacpp")
    split = [float(each) for each in option(text, "--tensor-split").split(",")] if len(counts) > 1 else [1.0]
    placed = llama_devices(split, sum(counts), int(option(text, "-ngl")))
    assert placed[:-1] == [stage for stage, number in enumerate(counts) for _ in range(number)]
    assert placed[-1] == len(counts) - 1


def test_llamacpp_leaves_the_first_blocks_on_the_cpu() -> None:
    text = export(cpu_first(decoder([3, 2, 2])), "llamacpp")
    split = [float(each) for each in option(text, "--tensor-split").split(",")]
    assert llama_devices(split, 7, int(option(text, "-ngl"))) == ["cpu", "cpu", "cpu", 0, 0, 1, 1, 1]


@given(stage_counts)
def test_megatrons_layout_adds_up(counts: list[int]) -> None:
    text = export(decoder(counts, training=True), "megatron")
    stages = option(text, "--pipeline-model-parallel-layout").split("|")
    assert stages[0].startswith("E") and stages[-1].endswith("L")
    numbers = [eval(each.strip("EL").replace("t*", "0+").replace("t", "1") or "0") for each in stages]
    assert numbers == counts
    assert option(text, "--num-layers") == str(sum(counts))


def run_deepspeed(text: str, stage: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """What the exported class tells DeepSpeed, with a stand-in for its PipelineModule."""

    class PipelineModule:
        global_rank = stage
        _topo = types.SimpleNamespace(get_coord=lambda rank: types.SimpleNamespace(pipe=rank))

        def _set_bounds(self, start: int, stop: int) -> None:
            self.bounds = (start, stop)

    package, pipe = types.ModuleType("deepspeed"), types.ModuleType("deepspeed.pipe")
    pipe.PipelineModule = PipelineModule  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", package)
    monkeypatch.setitem(__import__("sys").modules, "deepspeed.pipe", pipe)
    names: dict[str, Any] = {}
    exec(compile(text, "deepspeed_plan.py", "exec"), names)
    module = names["PlannedPipelineModule"]()
    module._layer_specs = names["LAYERS"]
    module._partition_layers()
    assert module.parts[-1] == len(names["LAYERS"])
    return module.bounds  # type: ignore[no-any-return]


def test_deepspeed_runs_every_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = export(decoder([2, 3, 1], training=True), "deepspeed")
    bounds = [run_deepspeed(text, stage, monkeypatch) for stage in range(3)]
    assert bounds == [(0, 3), (3, 6), (6, 9)]  # embed and 2 blocks, 3 blocks, 1 block with norm and head


def test_a_cut_inside_a_block_is_moved_and_said() -> None:
    plan = with_layers(
        ("embed", "h.0.attn", "h.0.mlp", "h.1.attn.q", "h.1.attn.k"), ("h.1.mlp", "h.2.attn", "h.2.mlp", "head")
    )
    text = export(plan, "vllm")
    assert variable(text, "VLLM_PP_LAYER_PARTITION") == "2,1"
    assert "the plan cuts block h.1 (2 layers in stage 0, 1 layers in stage 1); here all of it is in stage 0" in text


def wide(plan: Plan, index: int) -> Plan:
    """The plan with one stage on two devices."""
    first = plan.stages[index]
    extra = replace(plan.cluster.devices[0], name="extra")
    stage = replace(first, devices=(*first.devices, "extra"), tensor_parallel=2)
    return replace(
        plan, stages=tuple(stage if each is first else each for each in plan.stages),
        cluster=replace(plan.cluster, devices=(*plan.cluster.devices, extra)),
    )


def two_lists() -> Plan:
    return with_layers(("encoder.block.0", "encoder.block.1"), ("decoder.block.0", "decoder.block.1"))


def cpu_last() -> Plan:
    plan = decoder([2, 2])
    one, other = plan.cluster.devices
    return replace(plan, cluster=replace(plan.cluster, devices=(one, replace(other, backend="cpu", kind="cpu-8t"))))


def head_alone() -> Plan:
    return with_layers(("embed", "h.0", "h.1"), ("head",))


@pytest.mark.parametrize(("plan", "to", "message"), [
    (decoder([2, 2], training=True), "vllm", "serves models, the plan trains one"),
    (decoder([2, 2], training=True), "llamacpp", "serves models, the plan trains one"),
    (cpu_last(), "vllm", "runs on GPUs, the plan uses rtx-4090:1"),
    (cpu_last(), "llamacpp", "gives the CPU the first layers only"),
    (wide(decoder([2, 2]), 0), "vllm", "one tensor-parallel size, the stages have [2, 1]"),
    (wide(decoder([2, 2]), 0), "megatron", "one tensor-parallel size"),
    (wide(decoder([4]), 0), "deepspeed", "splits no layers between devices"),
    (wide(decoder([4]), 0), "llamacpp", "no tensor-parallel stages"),
    (wide(decoder([4]), 0), "accelerate", "cannot share stage 0 between devices"),
    (two_lists(), "vllm", "this model has 2 (encoder.block: 2, decoder.block: 2)"),
    (two_lists(), "megatron", "this model has 2"),
    (with_layers(("a", "b"), ("c",)), "llamacpp", "this model has 0 (none)"),
    (with_layers(("h.0", "h.1"), ("h.3",)), "vllm", "numbers its blocks from 0 without holes"),
    (with_layers(("h.0", "x"), ("h.0@2",)), "deepspeed", "h.0 is entered more than once"),
    (head_alone(), "vllm", "wants a block in every stage, the plan has [2, 0]"),
    (with_layers(("h.0.a",), ("h.0.b",)), "deepspeed", "whole blocks give (1, 0)"),
])
def test_what_an_engine_cannot_say_is_refused(plan: Plan, to: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        export(plan, to)
    assert message in str(caught.value)


def test_the_head_alone_is_a_stage_for_megatron_and_llamacpp() -> None:
    assert option(export(head_alone(), "megatron"), "--pipeline-model-parallel-layout") == "Et*2|L"
    assert option(export(head_alone(), "llamacpp"), "--tensor-split") == "2,1"


def test_wide_plans_keep_their_width() -> None:
    plan = wide(decoder([4]), 0)
    assert option(export(plan, "vllm"), "--tensor-parallel-size") == "2"
    assert option(export(plan, "megatron"), "--tensor-model-parallel-size") == "2"


EVIL = "h.0\n$(touch pwned)`id`\"'\\'; drop"


@pytest.mark.parametrize("to", ["vllm", "llamacpp", "megatron", "deepspeed"])
def test_a_strangers_names_stay_comments(to: str) -> None:
    plan = decoder([2, 2], training=to in ("megatron", "deepspeed"))
    plan = replace(plan, model=replace(plan.model, name=EVIL))
    lines = export(plan, to).splitlines()
    assert all(line.startswith("#") for line in lines if "pwned" in line)
    assert any("pwned" in line for line in lines)


def test_dot_quotes_what_strangers_write_and_shows_every_layer() -> None:
    plan = with_layers(("embed", 'a"]; evil [label="'), ("back\\slash", "head\nline"))
    text = export(plan, "dot")
    assert r'label="a\"]; evil [label=\""' in text and r'"back\\slash"' in text and '"head line"' in text
    assert text.count("subgraph") == 2 and text.count("n1 -> n2") == 1
    balance = text.replace('\\"', "")
    assert balance.count('"') % 2 == 0


@given(stage_counts)
def test_every_format_writes_every_decoder(counts: list[int]) -> None:
    plan = decoder(counts)
    for to in FORMATS:
        assert export(plan, to).endswith("\n")
