"""Models by name, built without weights: on torch's meta device a tensor has a shape and no memory.

``hf:DIR`` reads a transformers config, ``torchvision:NAME`` and ``timm:NAME`` take those packages' own names.
Nothing is downloaded.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from autopart.errors import ModelSourceError
from autopart.usercode import call, pip_line
from autopart.weightless import Weightless

__all__ = ["SCHEMES", "Built"]

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""a model on the meta device with the args and kwargs of an example call"""

MAX_TOKENS = 512
"""length of the example sequence of a language model, unless the model's own limit is shorter"""


def from_transformers(place: str, dtype: torch.dtype | None) -> Built:
    """The architecture of a transformers config, and a batch of 1 made from it."""
    transformers = _package("transformers", "hf:")
    path = Path(place)
    if not path.exists():
        raise ModelSourceError(
            f"hf:{place}: there is no such folder or file here, and nothing is downloaded; "
            f"give a folder with a config.json, or the file"
        )
    config = call(transformers.AutoConfig.from_pretrained, place, local_files_only=True, what=f"hf:{place}")
    config.use_cache = False  # a cache is state between calls; a plan is for one call
    model_class = _transformers_class(transformers, config, place)
    with torch.device("meta"):
        model = call(model_class._from_config, config, what=f"hf:{place}", **({"dtype": dtype} if dtype else {}))
    return model.eval(), (), _transformers_inputs(model, config, place)


def from_torchvision(name: str, dtype: torch.dtype | None) -> Built:
    """A torchvision classifier or segmenter, and a batch of 8 images of its own size."""
    package = _package("torchvision", "torchvision:")
    if name not in package.models.list_models():
        raise _unknown("torchvision", name, package.models.list_models())
    with Weightless():
        model = call(package.models.get_model, name, weights=None, what=f"torchvision:{name}")
    weights = call(package.models.get_model_weights, name, what=f"torchvision:{name}")
    crop = getattr(weights.DEFAULT.transforms(), "crop_size", [224])[0] if len(weights) else 224
    return _image_model(model, (3, crop, crop), dtype)


def from_timm(name: str, dtype: torch.dtype | None) -> Built:
    """A timm model, and a batch of 8 images of its own size."""
    package = _package("timm", "timm:")
    if not package.is_model(name):
        raise _unknown("timm", name, package.list_models())
    with Weightless():
        model = call(package.create_model, name, pretrained=False, what=f"timm:{name}")
    return _image_model(model, tuple(model.pretrained_cfg["input_size"]), dtype)


SCHEMES: dict[str, Callable[[str, torch.dtype | None], Built]] = {
    "hf": from_transformers,
    "torchvision": from_torchvision,
    "timm": from_timm,
}
"""what may stand before the colon of a model source"""


def _package(name: str, scheme: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise ModelSourceError(f"{scheme} needs the package {name}, which is not installed; {pip_line(name)}")
    return importlib.import_module(name)


def _unknown(package: str, name: str, names: list[str]) -> ModelSourceError:
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"see {package}'s list of models"
    return ModelSourceError(f"{package} has no model {name!r}; {hint}")


def _image_model(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None) -> Built:
    model = model.to(device="meta", dtype=dtype).eval()
    images = torch.empty((8, *shape), dtype=dtype or torch.float32, device="meta")
    return model, (images,), {}


def _transformers_class(transformers: ModuleType, config: Any, place: str) -> Any:
    names: list[str] = config.architectures or []
    for name in names:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if names:
        raise ModelSourceError(
            f"hf:{place}: transformers {transformers.__version__} has no architecture {names[0]}; "
            f"install a newer one, or build it in a model.py"
        )
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    mapping = causal if type(config) in causal else transformers.MODEL_MAPPING
    return mapping[type(config)]


def _transformers_inputs(model: Any, config: Any, place: str) -> dict[str, Any]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None) or MAX_TOKENS
    tokens = torch.zeros((1, min(MAX_TOKENS, limit)), dtype=torch.long, device="meta")
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "input_ids": lambda: tokens,
        "pixel_values": lambda: _pixels(config, model.dtype),
        "input_features": lambda: torch.empty(
            (1, config.num_mel_bins, 2 * config.max_source_positions), dtype=model.dtype, device="meta"
        ),
    }
    if model.main_input_name not in makers:
        raise ModelSourceError(
            f"hf:{place}: cannot make the input {model.main_input_name!r} of {type(model).__name__} from its config; "
            f"write a model.py with build_model() and example_inputs()"
        )
    inputs = {model.main_input_name: makers[model.main_input_name]()}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    return inputs


def _pixels(config: Any, dtype: torch.dtype) -> torch.Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return torch.empty((1, getattr(vision, "num_channels", 3), height, width), dtype=dtype, device="meta")
