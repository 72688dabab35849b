from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autopart.errors import ModelSourceError, UsageError
from autopart.modelsource import Source, batch_of, load, with_batch

GOOD = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
    def forward(self, x, scale=1.0):
        return self.linear(x) * scale
def build_model():
    return Net()
def other():
    return nn.Linear(4, 3)
ready = nn.Linear(4, 5)
number = 3
def with_argument(width):
    return nn.Linear(width, 1)
def example_inputs():
    return (torch.rand(6, 4),)
"""
IDENTITY = "import torch\nbuild_model = torch.nn.Identity\n"


def written(folder: Path, text: str, name: str = "model.py") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_build_model_is_the_default(tmp_path: Path) -> None:
    source = load(written(tmp_path, GOOD))
    assert type(source.model).__name__ == "Net"
    assert source.args[0].shape == (6, 4)
    assert source.kwargs == {} and source.loss_fn is None and source.targets is None
    assert source.name == "model.py"


@pytest.mark.parametrize(("name", "width"), [("other", 3), ("ready", 5), ("Net", None)])
def test_a_function_a_class_or_a_module_is_chosen_by_name(tmp_path: Path, name: str, width: int | None) -> None:
    source = load(f"{written(tmp_path, GOOD)}:{name}")
    assert source.name == name
    assert width is None or source.model.weight.shape == (width, 4)


def test_a_module_of_a_package_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack").mkdir()
    written(tmp_path, GOOD, "pack/nets.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(load("pack.nets:other").model, nn.Linear)
    assert isinstance(load("nets.py:other", directory=tmp_path / "pack").model, nn.Linear)


def test_a_neighbour_file_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    written(tmp_path, GOOD, "neighbour_of_model.py")
    text = "from neighbour_of_model import build_model, example_inputs"
    assert type(load(written(tmp_path, text)).model).__name__ == "Net"


@pytest.mark.parametrize(("returned", "num_args", "names"), [
    ("(x, x)", 2, []), ("[x]", 1, []), ("x", 1, []), ("{'a': x}", 0, ["a"]), ("((x,), {'b': x})", 1, ["b"]),
    ("(x, {'a': x})", 2, []),
])
def test_forms_of_example_inputs(tmp_path: Path, returned: str, num_args: int, names: list[str]) -> None:
    text = IDENTITY + f"x = torch.ones(2)\ndef example_inputs(): return {returned}\n"
    source = load(written(tmp_path, text))
    assert len(source.args) == num_args
    assert list(source.kwargs) == names


def test_the_same_seed_gives_the_same_weights_and_inputs(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    one, again, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    assert torch.equal(one.model.linear.weight, again.model.linear.weight)  # type: ignore[arg-type,union-attr]
    assert torch.equal(one.args[0], again.args[0])
    assert not torch.equal(one.args[0], other.args[0])


def test_dtype_casts_weights_and_floating_inputs_only(tmp_path: Path) -> None:
    text = GOOD + "def example_targets():\n    return torch.zeros(6, dtype=torch.long), torch.rand(6)\n"
    source = load(written(tmp_path, text), dtype="bf16")
    assert {p.dtype for p in source.model.parameters()} == {torch.bfloat16}
    assert source.args[0].dtype == torch.bfloat16
    assert source.targets is not None
    assert [t.dtype for t in source.targets] == [torch.int64, torch.bfloat16]
    with pytest.raises(UsageError, match="'int3' is unknown; give one of float64"):
        load(written(tmp_path, GOOD), dtype="int3")


@pytest.mark.parametrize(("text", "name", "message"), [
    (GOOD, "missing", "has no missing; it has Net, build_model, other, ready, with_argument, example_inputs"),
    (GOOD, "number", "number is an int, not a function or an nn.Module"),
    (GOOD, "with_argument", "with_argument cannot be called without arguments (missing a required argument: 'width')"),
    (GOOD, "example_inputs", "example_inputs() returned a tuple, not an nn.Module"),
    ("x = 1\n", "", "has no build_model(); it has nothing callable"),
    (IDENTITY, "", "has no example_inputs(); write one"),
    (IDENTITY + "def example_inputs(): return 3\n", "", "returned an int; return a"),
    (GOOD + "loss_fn = 3\n", "", "loss_fn is an int; make it a function"),
    (GOOD + "example_targets = 3\n", "", "example_targets is an int"),
    ("def build_model(:\n", "", "model.py:1: `def build_model(:` is not Python"),
    ("import torch\n\nimport package_that_is_not_here.part\n", "",
     "model.py:3: `import package_that_is_not_here.part`: the package package_that_is_not_here is not installed; "
     "pip install package_that_is_not_here"),
    ("import torch.no_such_part\n", "", "the package torch has no module torch.no_such_part"),
    ("import sys\nsys.exit('stop')\n", "", "model.py:2: `sys.exit('stop')` raised SystemExit: stop"),
])
def test_every_mistake_has_one_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ModelSourceError) as caught:
        load(f"{path}:{name}" if name else path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_shows_their_line_and_their_frames_only(tmp_path: Path) -> None:
    text = "import torch\ndef build_model():\n    return inner()\ndef inner():\n    return torch.nn.Linear(2, 'wide')\n"
    with pytest.raises(ModelSourceError) as caught:
        load(written(tmp_path, text))
    assert "model.py:5: `return torch.nn.Linear(2, 'wide')` raised TypeError" in str(caught.value)
    assert "line 3, in build_model" in caught.value.detail
    assert "autopart" not in caught.value.detail.replace(str(tmp_path), "")


@pytest.mark.parametrize(("text", "message"), [
    ("nowhere.py", "nowhere.py does not exist"),
    ("nowhere/model.py:net", "nowhere/model.py does not exist"),
    ("package_that_is_not_here:net", "the package package_that_is_not_here is not installed"),
    ("two words", "names no model; give model.py[:name], package.module:name, hf:…, torchvision:…, timm:…"),
    ("model.py:", "names nothing after the colon"),
    (".", "is a folder"),
    ("hf:no/such/folder", "there is no such folder or file here, and nothing is downloaded"),
])
def test_texts_that_name_nothing(text: str, message: str) -> None:
    with pytest.raises(ModelSourceError) as caught:
        load(text)
    assert message in str(caught.value)


def test_batches_are_repeated_and_cut() -> None:
    source = Source(
        model=nn.Identity(), args=(torch.arange(6).reshape(3, 2), torch.arange(5)),
        kwargs={"mask": [torch.arange(3), "word"], "scalar": torch.tensor(1)}, targets=(torch.arange(3),),
        name="", text="",
    )
    assert batch_of(source) == 3
    longer = with_batch(source, 7)
    assert batch_of(longer) == 7
    assert longer.kwargs["mask"][0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert longer.args[1].tolist() == [0, 1, 2, 3, 4] and longer.kwargs["mask"][1] == "word"
    assert longer.targets is not None and longer.targets[0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert with_batch(longer, 2).args[0].tolist() == [[0, 1], [2, 3]]
    assert source.args[0].shape == (3, 2)
    assert with_batch(source, 3) is source


def test_batches_that_cannot_be() -> None:
    scalar = Source(model=nn.Identity(), args=(torch.tensor(1.0), 3), kwargs={}, name="", text="net.py")
    with pytest.raises(ModelSourceError, match=r"net\.py: example_inputs\(\) has no tensor with a batch"):
        batch_of(scalar)
    with pytest.raises(UsageError, match="not 0"):
        with_batch(scalar, 0)
    with pytest.raises(ModelSourceError, match="batch of 0 samples"):
        with_batch(Source(model=nn.Identity(), args=(torch.empty(0, 2),), kwargs={}, name="", text=""), 2)


def hf_config(folder: Path, **fields: Any) -> str:
    (folder / "config.json").write_text(json.dumps(fields))
    return f"hf:{folder}"


SMALL_GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 48, "vocab_size": 100}


def test_a_transformers_config_gives_a_model_without_weights(tmp_path: Path) -> None:
    source = load(hf_config(tmp_path, architectures=["GPT2LMHeadModel"], **SMALL_GPT2), dtype="bfloat16")
    assert type(source.model).__name__ == "GPT2LMHeadModel"
    assert {(p.device.type, p.dtype) for p in source.model.parameters()} == {("meta", torch.bfloat16)}
    assert source.kwargs["input_ids"].shape == (1, 48)
    assert source.model.config.use_cache is False  # type: ignore[union-attr]
    assert type(load(f"hf:{tmp_path}/config.json").model).__name__ == "GPT2LMHeadModel"


def test_a_config_without_architecture_is_a_language_model_if_it_can_be(tmp_path: Path) -> None:
    assert type(load(hf_config(tmp_path, **SMALL_GPT2)).model).__name__ == "GPT2LMHeadModel"


def test_an_encoder_decoder_and_a_vision_model_get_their_inputs(tmp_path: Path) -> None:
    t5 = load(hf_config(tmp_path, model_type="t5", architectures=["T5ForConditionalGeneration"], num_layers=1,
                        d_model=16, d_ff=16, num_heads=2, d_kv=8, vocab_size=50))
    assert set(t5.kwargs) == {"input_ids", "decoder_input_ids"}
    vit = load(hf_config(tmp_path, model_type="vit", architectures=["ViTForImageClassification"], num_hidden_layers=1,
                         hidden_size=16, intermediate_size=16, num_attention_heads=2, image_size=32))
    assert vit.kwargs["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("fields", "message"), [
    ({"model_type": "gpt2", "architectures": ["NoSuchNet"]}, "has no architecture NoSuchNet"),
    ({"model_type": "no_such_type"}, "no_such_type"),
])
def test_configs_that_transformers_does_not_know(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelSourceError, match=message):
        load(hf_config(tmp_path, **fields))


def test_missing_packages_get_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for scheme, package in (("timm:vit", "timm"), ("torchvision:resnet50", "torchvision"), ("hf:.", "transformers")):
        with pytest.raises(ModelSourceError, match=f"needs the package {package}.*pip install {package}"):
            load(scheme)


def fake_timm() -> types.ModuleType:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.linear = nn.Linear(4, 2)
            self.tied = nn.Linear(4, 2)
            self.tied.weight = self.linear.weight
            self.register_buffer("table", torch.arange(3))
            self.pretrained_cfg = {"input_size": (3, 16, 16)}

    module = types.ModuleType("timm")
    module.is_model = lambda name: name == "net"  # type: ignore[attr-defined]
    module.list_models = lambda: ["net"]  # type: ignore[attr-defined]
    module.create_model = lambda name, pretrained: Net()  # type: ignore[attr-defined]
    return module


def test_timm_models_have_no_weights_though_constructors_read_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", fake_timm())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    source = load("timm:net", dtype="float16")
    assert source.model.rates == [0.0, 0.5, 1.0]
    assert {t.device.type for t in (*source.model.parameters(), *source.model.buffers())} == {"meta"}
    assert source.model.tied.weight is source.model.linear.weight  # type: ignore[union-attr]
    assert source.args[0].shape == (8, 3, 16, 16) and source.args[0].dtype == torch.float16
    with pytest.raises(ModelSourceError, match=r"timm has no model 'nett'; did you mean net\?"):
        load("timm:nett")
