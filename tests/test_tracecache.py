from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autopart import api, cache, modelsource, tracecache, tracing
from autopart.modelsource import Source
from autopart.schema.plan import Plan
from autopart.tracecache import StaleTraceError, traced

TEXT = """
import torch
from torch import nn
def build_model():
    print("built")
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
def example_inputs():
    return (torch.rand(6, 8),)
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # a worker of pytest-xdist has none


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that were really traced."""
    sizes: list[int] = []
    original = tracing.trace

    def counted(model: nn.Module, args: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(args[0]))
        return original(model, args, *rest, **options)

    monkeypatch.setattr(tracing, "trace", counted)
    return sizes


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "cached_model.py").write_text(TEXT)
    return str(tmp_path / "cached_model.py")


def of(model: nn.Module, *args: Any) -> Source:
    return Source(model=model, args=args, kwargs={}, name="model", text="")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def deeper() -> nn.Module:
    return nn.Sequential(*net(), nn.Tanh()).eval()


def planned(text: str, **words: Any) -> Plan:
    return api.plan_source(modelsource.load(text, may_lack_weights=True), devices="2xt4", stages=2, **words)


def test_a_graph_is_traced_once(traces: list[int]) -> None:
    first = traced(of(net(), torch.rand(6, 8)), training=False)
    again = traced(of(net(), torch.rand(6, 8)), training=False)
    assert first.graph == again.graph and first.num_operators == again.num_operators and traces == [6]
    assert again.live()[1].graph == again.graph and traces == [6, 6]
    again.live()
    assert traces == [6, 6]
    assert traced(of(net(), torch.rand(6, 8)), training=False, fresh=True).graph == first.graph
    assert len(traces) == 3


def test_other_models_calls_and_modes_are_traced(traces: list[int]) -> None:
    traced(of(net(), torch.rand(6, 8)), training=False)
    traced(of(net(), torch.rand(4, 8)), training=False)
    traced(of(net(), torch.rand(6, 8)), training=True)
    traced(of(deeper(), torch.rand(6, 8)), training=False)
    assert traces == [6, 4, 6, 6]


class ReadsValues(nn.Module):
    """What torch.export cannot look into: it is recorded on real tensors, so values count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x)
        return out * 2 if out.sum() > 0 else out


def test_what_was_recorded_on_real_tensors_is_not_kept(traces: list[int]) -> None:
    for _ in range(2):
        assert traced(of(ReadsValues().eval(), torch.rand(6, 8)), training=False).graph.tracer != "torch.export"
    assert traces == [6, 6]


def test_modules_that_are_not_looked_into_are_not_kept(traces: list[int]) -> None:
    for _ in range(2):
        traced(of(net(), torch.rand(6, 8)), training=False, opaque=("0",))
    assert traces == [6, 6]


def test_a_wrong_graph_is_found_out_and_replaced(traces: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tracecache, "model_key", lambda *_, **__: ("the same for all",))
        right = traced(of(net(), torch.rand(6, 8)), training=False).graph
        wrong = traced(of(deeper(), torch.rand(6, 8)), training=False)
        assert wrong.graph == right
        with pytest.raises(StaleTraceError):
            wrong.live()
        again = traced(of(deeper(), torch.rand(6, 8)), training=False)
        assert again.graph != right and again.graph.fingerprint != right.fingerprint


def test_an_entry_of_another_form_is_said_and_replaced(traces: list[int]) -> None:
    source = of(net(), torch.rand(6, 8))
    traced(source, training=False)
    key = tracecache._key(source, False)
    cache.write("graphs", key, b'{"graph": 1}')
    with pytest.warns(UserWarning, match="traced anew"):
        traced(source, training=False)
    traced(source, training=False)
    assert traces == [6, 6]


def test_a_file_that_the_forward_loaded_is_looked_at_again(traces: list[int], tmp_path: Path) -> None:
    (tmp_path / "late_scale.py").write_text("FACTOR = 2.0\n")
    file = tmp_path / "imports_late.py"
    file.write_text(
        "import torch\nfrom torch import nn\nclass Late(nn.Module):\n    def forward(self, x):\n"
        "        from late_scale import FACTOR\n        return torch.relu(x * FACTOR)\n"
        "build_model = Late\ndef example_inputs():\n    return (torch.rand(6, 8),)\n"
    )
    source = modelsource.load(str(file))
    key = tracecache._key(source, False)
    traced(source, training=False)
    assert tracecache._read(key) is not None
    (tmp_path / "late_scale.py").write_text("FACTOR = 3.0\n")
    assert tracecache._read(key) is None


def test_a_planned_file_is_planned_again_without_a_trace_or_weights(
    text: str, traces: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = planned(text)
    before = len(traces)
    source = modelsource.load(text, may_lack_weights=True)
    assert source.weightless and all(each.is_meta for each in source.model.parameters())
    again = api.plan_source(source, devices="2xt4", stages=2)
    assert len(traces) == before > 0
    assert (again.stages, again.checks, again.model) == (first.stages, first.checks, first.model)
    assert [check.outcome for check in again.checks] == ["passed", "passed"]


def test_weights_that_were_left_out_come_when_they_are_needed(text: str, traces: list[int]) -> None:
    planned(text)
    real = modelsource.load(text)
    source = modelsource.load(text, may_lack_weights=True)
    with_them = modelsource.with_weights(source)
    assert source.weightless and not with_them.weightless
    torch.testing.assert_close(dict(with_them.model.state_dict()), dict(real.model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(with_them.args, real.args, rtol=0, atol=0)
    count = len(traces)
    plan = planned(text, batch=4, microbatches=2, mode="train")
    assert len(traces) > count and [check.outcome for check in plan.checks] == ["passed", "passed"]


@pytest.mark.parametrize("line", [
    "    if torch.randint(2, (1,)).item() > 1: raise ValueError",
    "    import warnings; warnings.warn('look')",
    "    float(torch.ones(3).sum())",
])
def test_a_model_that_might_be_another_without_weights_is_built_with_them(
    tmp_path: Path, line: str, recwarn: pytest.WarningsRecorder
) -> None:
    file = tmp_path / "needs_weights.py"
    file.write_text(TEXT.replace('    print("built")', line))
    planned(str(file))
    assert not modelsource.load(str(file), may_lack_weights=True).weightless


def test_a_changed_file_is_built_with_weights(text: str) -> None:
    planned(text)
    Path(text).write_text(TEXT.replace("16", "32"))
    assert not modelsource.load(text, may_lack_weights=True).weightless


@pytest.mark.usefixtures("quick_links")
def test_split_from_a_plan_traces_only_what_it_runs(traces: list[int]) -> None:
    model, x = net(), torch.rand(6, 8)
    plan = api.plan(model, (x,), devices="cpu:0,cpu:1", stages=2, microbatches=1)
    before = len(traces)
    divided = api.split(model, (x,), plan=plan)
    assert len(traces) == before
    torch.testing.assert_close(divided(x), model(x))
    assert len(traces) == before + 1


def test_sizes_that_nobody_chose_are_derived_and_the_chosen_one_is_traced(text: str, traces: list[int]) -> None:
    plan = planned(text, batch=24, verify=False)
    micro = 24 // plan.schedule.num_microbatches
    assert micro in traces and 24 in traces and len(traces) == len(set(traces)) <= 3
    settled = planned(text, batch=24, verify=False, microbatches=plan.schedule.num_microbatches)
    assert settled.stages == plan.stages and settled.prediction == plan.prediction
