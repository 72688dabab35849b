from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.pipelining import SplitPoint, pipeline

from autopart.errors import UsageError
from autopart.exporting import export
from autopart.schema.plan import Plan
from tests.exporting.plans import with_layers
from tests.paper import a_plan, one_device_plan


def exported(plan: Plan, to: str) -> Any:
    return json.loads(export(plan, to))


def test_device_map_has_the_shortest_prefixes() -> None:
    stages = (("t.embed", "t.h.0.attn", "t.h.0.mlp"), ("t.h.1.attn", "t.h.1.mlp", "head"))
    document = exported(with_layers(*stages), "accelerate")
    assert document["device_map"] == {"t.embed": 0, "t.h.0": 0, "t.h.1": 1, "head": 1}
    assert document["max_memory"] == {"0": 24 * 10**9, "1": 24 * 10**9}


def test_a_weight_outside_the_layers_modules_is_in_the_device_map() -> None:
    plan = with_layers(("t.h.0", "t.h.1"), ("t.h.2", "head"))
    last = replace(plan.stages[1], weights=("t.h.2.weight", "t.final_norm.weight", "head.weight"))
    document = exported(replace(plan, stages=(plan.stages[0], last)), "accelerate")
    assert document["device_map"] == {"t.h.0": 0, "t.h.1": 0, "t.h.2": 1, "t.final_norm": 1, "head": 1}


def test_one_device_needs_one_word_per_top_level_module() -> None:
    assert exported(one_device_plan(), "accelerate")["device_map"] == {"embed": 0, "h": 0}


def a_weightless_plan() -> Plan:
    plan = a_plan()
    return replace(plan, stages=tuple(replace(stage, weights=()) for stage in plan.stages))


def a_tied_plan() -> Plan:
    plan = with_layers(("embed", "h.0"), ("h.1", "head"))
    tied = replace(plan.stages[1], weights=("h.1.weight", "embed.weight"))
    return replace(plan, stages=(plan.stages[0], tied))


def two_nodes() -> Plan:
    plan = with_layers(("h.0",), ("h.1",))
    one, other = plan.cluster.devices
    return replace(plan, cluster=replace(plan.cluster, devices=(one, replace(other, node="rack"))))


def two_cpus() -> Plan:
    plan = with_layers(("h.0",), ("h.1",))
    devices = tuple(replace(each, backend="cpu", kind="cpu-1t") for each in plan.cluster.devices)
    return replace(plan, cluster=replace(plan.cluster, devices=devices))


def a_skipping_plan() -> Plan:
    plan = with_layers(("h.0",), ("h.1",))
    return replace(plan, transfers=plan.transfers * 2)


@pytest.mark.parametrize(("plan", "message"), [
    (with_layers(("t.h.0.attn",), ("t.h.0.mlp",)), "between t.h.0.attn and t.h.0.mlp: it lies inside a block"),
    (with_layers(("t.embed",), ("t.h.0",)), "between t.embed and t.h.0: it lies inside a block"),
    (with_layers(("h.0", "h.1"), ("h.1@2",)), "between h.1 and h.1@2"),
    (with_layers(("h.0",), ("h.1", "h.0@2")), "cannot run h.0 on two devices"),
    (a_skipping_plan(), "2 values cross it"),
    (two_nodes(), "runs on one machine, the plan uses 2 (local, rack)"),
    (two_cpus(), "accelerate knows one cpu, the plan uses 2 devices"),
    (a_tied_plan(), "cannot put embed.weight, which two stages share, on both"),
    (a_weightless_plan(), "does not list its stages' weights"),
])
def test_what_a_device_map_cannot_say_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        export(plan, "accelerate")
    assert message in str(caught.value)


def test_accelerates_words_for_devices_that_are_here() -> None:
    plan = with_layers(("h.0",), ("h.1",))
    here = (
        replace(plan.cluster.devices[0], backend="cuda", torch_device="cuda:3"),
        replace(plan.cluster.devices[1], backend="cpu", kind="cpu-8t"),
    )
    document = exported(replace(plan, cluster=replace(plan.cluster, devices=here)), "accelerate")
    assert document["device_map"] == {"h.0": 3, "h.1": "cpu"}


def test_split_spec_begins_at_the_outermost_new_module() -> None:
    stages = (("t.embed", "t.h.0.attn", "t.h.0.mlp"), ("t.h.1.attn",), ("t.h.1.mlp", "t.h.2"), ("head",))
    document = exported(with_layers(*stages), "torch")
    assert document["split_spec"] == {"t.h.1": "beginning", "t.h.1.mlp": "beginning", "head": "beginning"}
    assert document["num_stages"] == 4 and document["num_microbatches"] == 8
    assert document["schedule"] == "ScheduleGPipe"


def test_torch_itself_splits_there() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    document = exported(with_layers(("0.0", "1.0"), ("2.0",)), "torch")
    spec = dict.fromkeys(document["split_spec"], SplitPoint.BEGINNING)
    pipe = pipeline(model, mb_args=(torch.rand(2, 4),), split_spec=spec)
    names = [{name for name, _ in pipe.get_stage_module(at).named_parameters()} for at in range(pipe.num_stages)]
    assert names == [{"0.0.weight", "0.0.bias", "1.0.weight", "1.0.bias"}, {"2.0.weight", "2.0.bias"}]


def test_a_stage_that_begins_with_a_second_call_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot begin a stage at a@2"):
        export(with_layers(("a", "b"), ("a@2",)), "torch")


names = st.lists(st.text("ab.,\"'é", min_size=1, max_size=4), min_size=3, max_size=9, unique=True)


@given(names, st.integers(1, 2), st.integers(0, 5))
def test_csv_has_every_layer_once_in_order(layers: list[str], first: int, more: int) -> None:
    second = min(first + 1 + more, len(layers))
    stages = [tuple(layers[:first]), tuple(layers[first:second]), tuple(layers[second:])]
    stages = [stage for stage in stages if stage]
    rows = list(csv.DictReader(io.StringIO(export(with_layers(*stages), "csv"))))
    assert [row["name"] for row in rows] == layers
    assert [int(row["layer"]) for row in rows] == list(range(len(layers)))
    assert [int(row["stage"]) for row in rows] == [at for at, stage in enumerate(stages) for _ in stage]


@pytest.mark.parametrize(("name", "schedule"), [
    ("gpipe", "ScheduleGPipe"), ("1f1b", "Schedule1F1B"), ("interleaved", "ScheduleInterleaved1F1B"),
    ("zero-bubble", "ScheduleInterleavedZeroBubble"),
])
def test_every_schedule_has_torchs_name(name: Any, schedule: str) -> None:
    plan = a_plan()
    assert exported(replace(plan, schedule=replace(plan.schedule, name=name)), "torch")["schedule"] == schedule
    assert hasattr(torch.distributed.pipelining, schedule)


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(UsageError, match="no format 'xml'; give one of accelerate, torch, vllm"):
        export(a_plan(), "xml")
