"""Every architecture of transformers whose configuration can be shrunk, with its most telling heads."""

from __future__ import annotations

import functools
import itertools
import re
import time
from typing import Any

import torch

from tests.zoology.inputs import inputs_for
from tests.zoology.mending import fill, mend
from tests.zoology.shrinking import EXTENTS, shrink
from tests.zoology.specimen import Case, NotBuiltError, Specimen

__all__ = ["specimens"]

MAX_PARAMETERS = 130_000_000
MAX_SECONDS = 20

_HEADS = (  # the first that a type has is its main specimen; detection and segmentation heads come besides
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION", "CTC", "MASKED_LM", "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION", "TIME_SERIES_PREDICTION", "DEPTH_ESTIMATION",
)  # fmt: skip
_BESIDES = ("OBJECT_DETECTION", "SEMANTIC_SEGMENTATION", "SEQUENCE_CLASSIFICATION")


def specimens() -> list[Specimen]:
    """Main heads of all types first, then base models and other heads."""
    from transformers.models.auto import modeling_auto

    tables = {name: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") for name in (*_HEADS, *_BESIDES)}
    main, besides = [], []
    for kind, base in modeling_auto.MODEL_MAPPING_NAMES.items():
        base = base if isinstance(base, str) else base[0]
        heads = [_first(tables[name][kind]) for name in _HEADS if kind in tables[name]]
        chosen = [*heads[:1], base, *(_first(tables[name][kind]) for name in _BESIDES if kind in tables[name])]
        found = [_specimen(kind, each) for each in dict.fromkeys(chosen)]
        main += found[:1]
        besides += found[1:]
    return [*main, *besides]


def _first(names: Any) -> str:
    return names if isinstance(names, str) else str(names[0])


def _specimen(kind: str, class_name: str) -> Specimen:
    return Specimen(name=f"hf:{kind}/{class_name}", build=functools.partial(_build, kind, class_name))


def _build(kind: str, class_name: str) -> Case:
    import transformers

    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise NotBuiltError(f"transformers has no {class_name}")
    config_class = model_class.config_class or transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    first: Exception | None = None
    last: Exception | None = None
    began = time.process_time()
    for extent, filled in itertools.product(EXTENTS, (False, True)):
        try:
            config = shrink(config_class, extent)
            mend(config, kind)
            if filled:
                fill(config)
            _check_size(model_class, config)
            torch.manual_seed(0)
            model = model_class(config)
            return Case(model=model, kwargs=inputs_for(model))
        except ImportError as error:
            raise NotBuiltError(f"it needs a package that is not installed: {_package(error)}") from error
        except Exception as error:
            first, last = first or error, error
            if time.process_time() - began > MAX_SECONDS:
                break
    raise NotBuiltError(f"{type(first).__name__}: {str(first)[:300]}") from last


def _package(error: ImportError) -> str:
    found = re.search(r"requires the (\S+) library", str(error))
    return found[1] if found else error.name or str(error)[:200]


def _check_size(model_class: Any, config: Any) -> None:
    with torch.device("meta"):
        model = model_class(config)
    count = sum(each.numel() for each in model.parameters())
    if count > MAX_PARAMETERS:
        raise NotBuiltError(f"{count / 1e6:.0f} million parameters are left")
