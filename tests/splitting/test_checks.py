from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from autopart.errors import MismatchError
from autopart.keying import codekey
from autopart.modelsource import Source
from autopart.program import Program
from autopart.schema.plan import Check
from autopart.splitting import check_split, checks, devicecheck, remembered, verify
from autopart.tracing import trace
from tests.zoo import case, edges, program, stages_of, tracer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # a worker of pytest-xdist has none


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def _source(model: nn.Module, *args: Any, **kwargs: Any) -> Source:
    return Source(model=model, args=args, kwargs=kwargs, name="net", text="")


def _checked(
    model: nn.Module, batch: int = 6, *, traced: Program | None = None, **words: Any
) -> tuple[Check, ...]:
    source = _source(model, torch.randn(batch, 4, generator=torch.Generator().manual_seed(0)))
    traced = traced or trace(model, source.args, training=model.training)
    return check_split(source, traced, stages_of(traced, edges(len(traced.graph.layers), 2)), tracer, **words)


def _said(checks: Sequence[Check]) -> list[tuple[str, str]]:
    return [(each.name, each.outcome) for each in checks]


def test_what_was_checked_is_said() -> None:
    values, devices = _checked(_net().train())
    assert values.detail == "outputs, 6 gradients and 3 buffers equal the unsplit model's bit by bit (6 samples)"
    assert devices.detail == "every operator's tensors are on one of 2 devices, forward and backward, on fake tensors"
    values, devices = _checked(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval())
    assert values.detail == "outputs equal the unsplit model's bit by bit (6 samples)"
    assert (values.outcome, devices.outcome) == ("passed", "passed")


@pytest.mark.parametrize("name", ["gpt2", "resnet"])
def test_real_models(name: str) -> None:
    each = case(name)
    each.model.train()
    source = _source(each.model, *each.args, **each.kwargs)
    traced = program(name, True)
    found = check_split(source, traced, stages_of(traced, edges(len(traced.graph.layers), 3)), tracer)
    assert _said(found) == [("values", "passed"), ("devices", "passed")]


def test_a_long_run_is_made_shorter_and_at_last_not_at_all() -> None:
    model = _net().train()
    traced = trace(model, (torch.randn(6, 4),), training=True)
    per_sample = 2 * 3 * traced.graph.flops / 6
    values, _ = _checked(model, max_flops=2.5 * per_sample)
    assert values.outcome == "passed" and values.detail.endswith("(2 samples)")
    values, _ = _checked(model, max_flops=0.5 * per_sample, anew=True)
    assert values.outcome == "skipped" and values.detail.startswith("two runs of 1 sample take ")
    assert "`autopart verify`" in values.detail


def test_a_run_that_does_not_fit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_free_bytes", lambda device: 1000)
    values, devices = _checked(_net().train())
    assert values.outcome == "skipped" and "500 B may be used" in values.detail
    assert devices.outcome == "passed"


def test_free_memory_is_a_number_of_this_machine() -> None:
    assert 10**6 < checks._free_bytes(torch.device("cpu")) <= 2**62


def test_weights_without_values() -> None:
    with torch.device("meta"):
        model = _net().eval()
    source = _source(model, torch.randn(6, 4, device="meta"))
    traced = trace(model, source.args, training=False)
    found = check_split(source, traced, stages_of(traced, edges(len(traced.graph.layers), 2)), tracer)
    assert _said(found) == [("values", "skipped"), ("devices", "passed")]
    assert "meta" in found[0].detail


def test_what_cannot_be_faked_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise DynamicOutputShapeException(torch.ops.aten.nonzero.default)

    monkeypatch.setattr(devicecheck, "_run", refuse)
    values, devices = _checked(_net().eval())
    assert (values.outcome, devices.outcome) == ("passed", "skipped")
    assert devices.detail == "cannot run on fake tensors: aten.nonzero.default"


def test_a_mismatch_is_raised_and_not_remembered() -> None:
    model = _net().eval()
    other = trace(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval(),
                  (torch.randn(6, 4),), training=False)
    for _ in range(2):
        with pytest.raises(MismatchError, match="output 0 differs"):
            _checked(model, traced=other)


def test_a_model_that_fails_unsplit_is_no_mismatch() -> None:
    model = _net().train()
    traced = trace(model, (torch.randn(6, 4),), training=True)
    per_sample = 2 * 3 * traced.graph.flops / 6
    values, _ = _checked(model, max_flops=1.5 * per_sample, traced=traced)
    assert values.outcome == "skipped"
    assert "1 sample" in values.detail and "more than 1 value per channel" in values.detail


def test_what_passed_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append("run")
        return verify(*args, **kwargs)

    monkeypatch.setattr(checks, "verify", counted)
    model = _net().train()
    first = _checked(model)
    assert _checked(model) == first and len(runs) == 1
    assert _checked(model, anew=True) == first and len(runs) == 2
    _checked(model, batch=8)
    assert len(runs) == 3
    _checked(model.eval())
    assert len(runs) == 4


def test_changed_code_is_checked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = _net().eval()
    traced = trace(model, (torch.randn(6, 4),), training=False)
    file = tmp_path / "user.py"
    file.write_text("x = 1")
    monkeypatch.setattr(codekey, "user_files", lambda: (str(file),))
    check = Check(name="devices", outcome="passed", detail="so it is")
    remembered.remember(traced.graph, model, (1,), ("cpu",), check)
    assert remembered.passed_before("devices", traced.graph, model, (1,), ("cpu",)) == check
    assert remembered.passed_before("devices", traced.graph, model, (2,), ("cpu",)) is None
    assert remembered.passed_before("values", traced.graph, model, (1,), ("cpu",)) is None
    file.write_text("x = 2")
    assert remembered.passed_before("devices", traced.graph, model, (1,), ("cpu",)) is None


def test_nothing_is_remembered_of_code_that_was_typed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _net().eval()
    traced = trace(model, (torch.randn(6, 4),), training=False)
    monkeypatch.delattr("__main__.__file__")
    remembered.remember(traced.graph, model, (1,), ("cpu",), Check(name="devices", outcome="passed", detail="so it is"))
    assert remembered.passed_before("devices", traced.graph, model, (1,), ("cpu",)) is None
