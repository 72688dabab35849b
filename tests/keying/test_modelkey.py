"""A wrong hit would be silent wrongness: all that a trace looks at is changed here, and must change the key."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autopart import modelsource
from autopart.keying import codekey, model_key
from autopart.modelsource import Source
from autopart.weightless import weights_left_out

TEXT = """
import functools, torch
from torch import nn

SCALE = 2.0
TABLE = {"depth": 1}

def activation(x):
    return torch.relu(x)

class Options:
    def __init__(self):
        self.width = 4
        self.names = ["a", "b"]
        self._original_object_hash = hash("words")  # as transformers' GenerationConfig; another in each process

class Net(nn.Module):
    factor = 3
    def __init__(self):
        super().__init__()
        self.options = Options()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.table = torch.arange(4.0)
        self.depth, self.flag, self.word = 2, True, "mean"
        self.act = functools.partial(activation)
    def forward(self, x, times=1):
        for _ in range(self.depth):
            x = self.norm(self.second(self.act(self.first(x)))) * SCALE * times
        return x + self.table * TABLE["depth"]

build_model = Net
def example_inputs():
    return (torch.rand(6, 4),)
"""


@pytest.fixture(autouse=True)
def started_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # a worker of pytest-xdist has none


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return loaded(tmp_path, TEXT)


def loaded(folder: Path, text: str) -> Source:
    (folder / "net.py").write_text(text)
    return modelsource.load(str(folder / "net.py"))


def key_of(source: Source, **changes: Any) -> tuple[str, ...]:
    options = {"training": False, "name": "net.py", **changes}
    return model_key(source.model, source.args, source.kwargs, **options)


def test_the_same_model_has_the_same_key(source: Source, tmp_path: Path) -> None:
    assert key_of(source) and key_of(source) == key_of(source)
    assert key_of(loaded(tmp_path, TEXT)) == key_of(source)


def test_weights_and_inputs_are_not_looked_at(source: Source) -> None:
    before = key_of(source)
    with torch.no_grad():
        source.model.get_parameter("first.weight").add_(1)
    source.args[0].add_(1)
    assert key_of(source) == before


def test_other_processes_find_the_same_key(source: Source, tmp_path: Path) -> None:
    script = (
        "import sys; from autopart import modelsource; from autopart.keying import model_key;"
        "s = modelsource.load(sys.argv[1]); print(model_key(s.model, s.args, s.kwargs, training=False, name='')[-1])"
    )
    (tmp_path / "ask.py").write_text(script)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # other hashes than those of this process
    asked = subprocess.run(
        [sys.executable, str(tmp_path / "ask.py"), str(tmp_path / "net.py")], capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert key_of(source, name="")[-1] == asked.stdout.strip() != ""


def test_a_model_without_weights_stands_for_one_with(source: Source) -> None:
    with weights_left_out():
        model = type(source.model)()
    assert all(each.is_meta for each in model.parameters())
    args = (model, source.args, source.kwargs)
    assert model_key(*args, training=False, name="net.py", stands_for="cpu") == key_of(source)
    assert model_key(*args, training=False, name="net.py") != key_of(source)


def _tie(model: Any) -> None:
    model.second.weight = model.first.weight


def _stride(model: Any) -> None:
    model.first.weight = nn.Parameter(model.first.weight.t().contiguous().t())


def _hook(model: Any) -> None:
    model.first.register_forward_hook(lambda *_: None)


def _backward_hook(model: Any) -> None:
    model.first.register_full_backward_hook(lambda *_: None)


def _patch(model: Any) -> None:
    model.forward = lambda x, times=1: x


def _options(model: Any) -> None:
    model.options.names[1] = "c"


def _buffer(model: Any) -> None:
    model.register_buffer("more", torch.zeros(1))


def _global(model: Any) -> None:
    type(model).forward.__globals__["SCALE"] = 3.0


def _global_dict(model: Any) -> None:
    type(model).forward.__globals__["TABLE"]["depth"] = 2


def _global_function(model: Any) -> None:
    space = type(model).forward.__globals__
    space["activation"].__code__ = (lambda x: x.tanh()).__code__


def _class(model: Any) -> None:
    type(model).factor = 4


def _class_function(model: Any) -> None:
    type(model).forward = lambda self, x, times=1: self.first(x)


def _in_place(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        setattr(model, name, value)

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "number": _in_place("depth", 3), "flag": _in_place("flag", False), "word": _in_place("word", "sum"),
    "new attribute": _in_place("another", None), "type of a number": _in_place("depth", 2.0),
    "values of a plain tensor": lambda model: model.table.add_(1), "object's attribute": _options,
    "mode of a part": lambda model: model.norm.eval(), "mode": lambda model: model.eval(),
    "frozen": lambda model: model.first.weight.requires_grad_(False), "data type": lambda model: model.first.half(),
    "device": lambda model: model.first.to("meta"), "shape": _in_place("second", nn.Linear(4, 4, bias=False)),
    "tied": _tie, "stride": _stride, "hook": _hook, "backward hook": _backward_hook, "patched": _patch,
    "other class": _in_place("first", nn.Identity()), "new buffer": _buffer,
    "torch's own attribute": lambda model: setattr(model.norm, "eps", 1e-3),
    "global": _global, "global dict": _global_dict, "global function": _global_function, "class variable": _class,
    "class function": _class_function,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_model_is_another_key(source: Source, change: Callable[[Any], Any]) -> None:
    before = key_of(source)
    change(source.model)
    assert key_of(source) not in ((), before)


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "batch": ((torch.rand(7, 4),), {}), "data type": ((torch.rand(6, 4).double(),), {}),
    "stride": ((torch.rand(4, 6).t(),), {}), "gradient": ((torch.rand(6, 4, requires_grad=True),), {}),
    "keyword": ((torch.rand(6, 4),), {"times": 1}), "plain value": ((torch.rand(6, 4),), {"times": 2}),
    "positional": ((torch.rand(6, 4), 1), {}), "structure": (([torch.rand(6, 4)],), {}),
    "device": ((torch.rand(6, 4, device="meta"),), {}),
}  # fmt: skip


def test_every_form_of_a_call_has_a_key_of_its_own(source: Source) -> None:
    keys = {key_of(source)} | {
        model_key(source.model, args, kwargs, training=False, name="net.py") for args, kwargs in CALLS.values()
    }
    assert len(keys) == 1 + len(CALLS) and () not in keys


def test_training_name_and_loss_are_in_the_key(source: Source) -> None:
    loss = (torch.nn.functional.mse_loss, (torch.rand(6, 4),))
    other = (torch.nn.functional.l1_loss, (torch.rand(6, 4),))
    keys = {
        key_of(source), key_of(source, training=True), key_of(source, name="x"), key_of(source, loss=loss),
        key_of(source, loss=other), key_of(source, loss=(loss[0], (torch.rand(6, 1),))),
    }  # fmt: skip
    assert len(keys) == 6


def test_torch_switches_are_in_the_key(source: Source) -> None:
    before = key_of(source)
    with torch.no_grad():
        assert key_of(source) != before
    with torch.autocast("cpu"):
        assert key_of(source) != before
    torch.set_default_dtype(torch.float64)
    try:
        assert key_of(source) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert key_of(source) == before


def test_source_text_and_what_it_imports_are_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "beside_net.py").write_text("X = 1\n")
    text = "import beside_net\n" + TEXT
    before = key_of(loaded(tmp_path, text))
    assert key_of(loaded(tmp_path, text.replace("x = self.norm", "x = +self.norm"))) != before
    assert key_of(loaded(tmp_path, text)) == before
    (tmp_path / "beside_net.py").write_text("X = 2\n")
    assert key_of(loaded(tmp_path, text)) != before


def test_environment_variables_that_the_code_names_are_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = loaded(tmp_path, TEXT + "\nimport os\nDEEP = 'NET_IS_DEEP' in os.environ\n")
    before = key_of(named)
    monkeypatch.setenv("NOBODY_" + "READS_THIS", "1")  # or it would be named, here
    assert key_of(named) == before
    monkeypatch.setenv("NET_IS_DEEP", "1")
    assert key_of(named) != before


def test_versions_are_in_the_key(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(source)
    monkeypatch.setattr("autopart.__version__", "0.0.0")
    assert key_of(source) != before
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    assert key_of(source) != before
    monkeypatch.undo()
    monkeypatch.setattr(codekey, "_own_state", lambda: "edited")
    assert key_of(source) != before


def test_what_cannot_be_spelled_or_is_in_no_file_has_no_key(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = source.model
    model.lock = threading.Lock()
    assert key_of(source) == ()
    del model.lock
    assert key_of(source)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert key_of(source) == ()
