"""A layer's own costs and the next best cut, on devices that are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.cli.main import main
from autopart.errors import UsageError
from autopart.explaining.cuts import layer_terms, next_best, stage_of
from autopart.modelsource import Source
from autopart.schema.plan import Plan
from autopart.verbs import plan_source
from tests.exporting.plans import with_layers


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path_factory.getbasetemp() / "explain-cache"))


@pytest.fixture(scope="module")
def source() -> Source:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(6)))
        return Source(model=model, args=(torch.empty(512, 4096),), kwargs={}, name="stack", text="")


@pytest.fixture(scope="module")
def plan(source: Source) -> Plan:
    return plan_source(source, devices="2xl4", verify=False, stages=2)


def test_the_next_best_plan_is_slower_and_cuts_elsewhere(plan: Plan, source: Source) -> None:
    (found,) = next_best(plan, source, (1,))
    assert (found.after_layer, found.before_layer) == (plan.stages[0].layers[-1], plan.stages[1].layers[0])
    assert found.factor is not None and found.factor > 1 and found.reason == ""
    assert found.cuts and f"{found.after_layer} | {found.before_layer}" not in found.cuts


def test_a_layers_terms_are_those_of_its_stage_in_part(plan: Plan, source: Source) -> None:
    stage = plan.stages[1]
    terms = [layer_terms(plan, source, name) for name in stage.layers]
    assert sum(each.share for each in terms) == pytest.approx(1)
    assert sum(each.times[0].forward_seconds for each in terms) == pytest.approx(stage.forward_seconds)
    assert all(each.stage == 1 and each.weight_bytes == 4 * (4096 * 4096 + 4096) for each in terms)
    assert all(each.bytes_before == 4 * 4096 * plan.job.batch // plan.schedule.num_microbatches for each in terms)


def test_layers_are_found_by_name_or_by_their_module() -> None:
    plan = with_layers(("embed", "h.0.attn", "h.0.mlp"), ("h.1.attn", "head.out"))
    assert stage_of(plan, "h.0.mlp").index == 0 and stage_of(plan, "h.1").index == 1
    with pytest.raises(UsageError, match=r"2 layers lie under h\.0"):
        stage_of(plan, "h.0")
    with pytest.raises(UsageError, match="no layer 'hea'"):
        stage_of(plan, "hea")


MODEL = """
import torch
from torch import nn
def build_model():
    return nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 8))
def example_inputs():
    return (torch.rand(8, 256),)
"""


def test_the_command_explains_stages_layers_and_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model := tmp_path / "small.py").write_text(MODEL)
    file = str(tmp_path / "plan.json")
    assert main(["plan", str(model), "-d", "2xt4", "--stages", "2", "--no-verify", "-o", file]) == 0
    capsys.readouterr()
    assert main(["explain", file, "--stage", "1"]) == 0
    done = capsys.readouterr()
    assert done.out.startswith("Stage 1 on t4:") and "take the model" in done.err
    assert main(["explain", file, str(model), "--layer", "2"]) == 0
    done = capsys.readouterr()
    assert "Layer 2" in done.out and "Without a cut the best plan is" in done.out and done.err == ""
    assert main(["explain", file, str(model), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["layer"] is None and len(document["alternatives"]) == 1
    assert main(["explain", file, "--stage", "2"]) == 2
    assert "stages 0 to 1, not 2" in capsys.readouterr().err
    assert main(["explain", file, "--layer", "nine"]) == 2
    assert "no layer 'nine'" in capsys.readouterr().err
