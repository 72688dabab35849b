"""Every architecture of transformers whose configuration can be shrunk, with its most telling heads."""

from __future__ import annotations

import functools
from typing import Any

import torch

from tests.zoology.inputs import inputs_for
from tests.zoology.shrinking import VOCABULARY, shrink
from tests.zoology.specimen import Case, NotBuiltError, Specimen

__all__ = ["specimens"]

MAX_PARAMETERS = 80_000_000

_HEADS = (  # the first that a type has is its main specimen; detection and segmentation heads come besides
    "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION", "SEMANTIC_SEGMENTATION", "CTC", "MASKED_LM", "IMAGE_CLASSIFICATION",
    "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION", "TIME_SERIES_PREDICTION", "DEPTH_ESTIMATION",
)  # fmt: skip
_BESPOKE: dict[str, dict[str, Any]] = {
    "cvt": {"depth": (1, 2, 3)},  # it indexes its drop rates with the number of the stage
    "bamba": {"attn_layer_indices": [1, 3]},
    "donut-swin": {"embed_dim": 96},
    "maskformer-swin": {"embed_dim": 96},
}
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
    for widths in (True, False):
        try:
            config = shrink(config_class, widths=widths)
            _mend(config, kind)
            _check_size(model_class, config)
            torch.manual_seed(0)
            model = model_class(config)
            return Case(model=model, kwargs=inputs_for(model))
        except Exception as error:
            first = first or error
    raise NotBuiltError(f"{type(first).__name__}: {str(first)[:300]}") from first


def _mend(config: Any, kind: str) -> None:
    """What follows from widths without a field of its own, and what an architecture wants for itself."""
    for name, value in _BESPOKE.get(kind, {}).items():
        setattr(config, name, value)
    for name, value in (("image_token_id", 5), ("image_token_index", 5), ("vocab_size", VOCABULARY)):
        if getattr(config, name, 0) is None:
            setattr(config, name, value)
    _mend_rope(config.get_text_config())


def _mend_rope(text: Any) -> None:
    """Three axes of rotary positions share half a head; what each gets is often a constant in the code."""
    rope = getattr(text, "rope_parameters", None)
    heads = getattr(text, "num_attention_heads", None)
    if isinstance(rope, dict) and "rope_type" in rope and isinstance(heads, int):
        half = (getattr(text, "head_dim", None) or text.hidden_size // heads) // 2
        rope["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]


def _check_size(model_class: Any, config: Any) -> None:
    with torch.device("meta"):
        model = model_class(config)
    count = sum(each.numel() for each in model.parameters())
    if count > MAX_PARAMETERS:
        raise NotBuiltError(f"{count / 1e6:.0f} million parameters are left")
