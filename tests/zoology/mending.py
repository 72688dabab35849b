"""What a shrunk transformers configuration still lacks: by the names of fields, and a few words on odd ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.zoology.shrinking import VOCABULARY, sections

__all__ = ["fill", "mend"]

_BESPOKE: dict[str, dict[str, Any]] = {
    "cvt": {"depth": (1, 2, 3)},  # it indexes its drop rates with the number of the stage
    "beit": {"out_indices": [1, 2, 3, 4]},
    "bamba": {"attn_layer_indices": [1, 3]},
    "donut-swin": {"embed_dim": 96},
    "maskformer-swin": {"embed_dim": 96},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "reformer": {"is_decoder": True, "axial_pos_shape": (4, 2), "axial_pos_embds_dim": (16, 48)},
    "big_bird": {"attention_type": "original_full"},  # short texts are not sparse
    "timm_backbone": {"backbone": "resnet18"},
    "timm_wrapper": {"architecture": "resnet18"},
    "wav2vec2-conformer": {"vocab_size": VOCABULARY},
    "blt": {"num_hidden_layers": 2},  # its cache asks for it
    "cohere_compass_text": {"rope_parameters": {name: {"rope_type": "default", "rope_theta": 1e4} for name in (
        "full_attention", "sliding_attention")}},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 2, "indexer_head_dim": 16, "indexer_budget": 8,
        "indexer_compress_ratio": 2, "ngram_vocab_size_base": 128, "split_ngram_parts": 1,
    },
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "mamba"]},
}
_TOKENS = ("image_token_id", "image_token_index")


def mend(config: Any, kind: str) -> None:
    """What follows from widths without a field of its own, and what an architecture wants for itself."""
    for part in _parts(config):
        for name, value in _BESPOKE.get(kind if part is config else part.model_type, {}).items():
            if part is config or not part.model_type.startswith("timm"):
                setattr(part, name, value)
    for name, value in (*((each, 5) for each in _TOKENS), ("vocab_size", VOCABULARY)):
        if _get(config, name, 0) is None:
            setattr(config, name, value)
    for part in _parts(config):
        _mend_rope(part)
        _mend_layer_types(part)


def fill(config: Any) -> None:
    """Give fields that are None, and that an architecture cannot do without, the value that others have."""
    for part in _parts(config):
        for name, value in _WANTED.items():
            if _get(part, name, 0) is None:
                found = value(part)
                if found is not None:
                    setattr(part, name, found)


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for each in list(vars(config).values()):
        if hasattr(each, "model_type") and hasattr(each, "to_dict"):
            yield from _parts(each)


def _mend_rope(text: Any) -> None:
    """Three axes of rotary positions share half a head; what each gets is often a constant in the code."""
    rope, head = _get(text, "rope_parameters"), _head(text)
    if isinstance(rope, dict) and head and ("rope_type" in rope or "mrope_section" in rope):
        share = rope.get("partial_rotary_factor") or _get(text, "partial_rotary_factor") or 1.0
        rope["mrope_section"] = sections(int(head * share) // 2)


def _mend_layer_types(text: Any) -> None:
    """A cache wants an attention layer; what comes once in many layers must come in a few."""
    kinds = _get(text, "layer_types")
    is_field = "layer_types" in getattr(type(text), "__dataclass_fields__", {})
    if is_field and isinstance(kinds, list) and len(kinds) > 1 and set(kinds) == {"linear_attention"}:
        text.layer_types = [*kinds[:-1], "full_attention"]


def _head(text: Any) -> int | None:
    heads, width = _get(text, "num_attention_heads"), _get(text, "hidden_size")
    found = _get(text, "head_dim") or (width // heads if isinstance(heads, int) and isinstance(width, int) else None)
    return found if isinstance(found, int) else None


def _layers(config: Any) -> int | None:
    found = _get(config, "num_hidden_layers")
    return found if isinstance(found, int) else None


def _each_layer(first: str, others: str) -> Callable[[Any], list[str] | None]:
    def kinds(config: Any) -> list[str] | None:
        number = _layers(config)
        return [first, *[others] * (number - 1)] if number else None

    return kinds


_WANTED: dict[str, Callable[[Any], Any]] = {
    "pad_token_id": lambda _: 0,
    "num_key_value_heads": lambda config: _get(config, "num_attention_heads"),
    "head_dim": _head,
    "layer_types": _each_layer("full_attention", "full_attention"),
    "mlp_layer_types": _each_layer("dense", "sparse"),
    "n_routed_experts": lambda _: 4,
    "num_experts": lambda _: 4,
    "num_local_experts": lambda _: 4,
    "num_experts_per_tok": lambda _: 2,
    "top_k_experts": lambda _: 2,
    "n_shared_experts": lambda _: 1,
    "moe_intermediate_size": lambda _: 64,
    "expert_intermediate_size": lambda _: 64,
    "n_group": lambda _: 1,
    "topk_group": lambda _: 1,
    "prediction_length": lambda _: 4,
    "context_length": lambda config: _get(config, "prediction_length"),
    "out_indices": lambda config: list(range(1, number + 1))[-4:] if (number := _layers(config)) else None,
    "default_language": lambda config: _get(config, "languages", (None,))[0],
    "vocabulary_map": lambda _: {"<image>": 5, "<|extra_200|>": 6},
}


def _get(config: Any, name: str, default: Any = None) -> Any:
    try:
        return getattr(config, name, default)
    except Exception:  # heterogeneous configurations refuse to name one value for all layers
        return default
