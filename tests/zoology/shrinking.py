"""Make a transformers configuration small without knowing its architecture: by the names of its fields.

Four layers (two per tower of several), width 64, four heads, 128 tokens, 32 x 32 images.  A field whose default is
None is left to the configuration's own ``__post_init__``, so that what it derives (``layer_types``, ``head_dim``)
stays consistent.  Lists of widths stay: only depths are cut.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

__all__ = ["EXTENTS", "IMAGE", "VOCABULARY", "Extent", "sections", "shrink"]

VOCABULARY = 128
FIRST_FREE_TOKEN = 40  # below are the special tokens
IMAGE = 32
WIDTH, HEADS, HEAD = 64, 4, 16

_LAYERS = re.compile(
    r"(num_(hidden_|decoder_|encoder_|memory_)?layers?|n_layers?|(\w+_)?num_hidden_layers|(\w+_)?layers|depth|depths"
    r"|num_block_repeats|block_sizes|stage_num_blocks|stage_numb_of_layers|n_attn_blocks|layer_depths"
    r"|memory_(attention|fuser)_num_layers|num_blocks|num_block)$"
)
_NO_LAYERS = re.compile(
    r"mlp_only_layers|moe_layers|no_rope_layers|encode_proj_layers|.*extract_layers|subsample_layers"
    r"|.*target_layers|.*(kv_shared|kv_source|shared|dense|adapter|residual|ctc|nextn_predict|mtp|mapper|postnet)_layers"
)
_INDICES = re.compile(r"index|indices|_layers?$|_idxs$|hook_ids|layer_ids")
_RULES: tuple[tuple[str, int], ...] = (
    (r"(text_|entity_)?vocab_size|vocab_size_per_layer_input|t2u_vocab_size|\w+_group_vocab", VOCABULARY),
    (r"n_positions|n_ctx|(\w+_)?max_position_embeddings|max_(source|target)_positions|max_seq_len|seq_length", 128),
    (r"head_dim|\w+_head_dim|v_head_dim|d_kv|mamba_d_head|mamba_head_dim|d_head|dim_head|rotary_dim|kv_channels", HEAD),
    (r"(\w+_)?(num_)?(key_value|kv)_heads|num_attention_groups", 2),
    (r"mamba_n_heads|mamba_num_heads", 2 * WIDTH // HEAD),
    (r"(\w+_)?(num_)?(attention_)?heads?|n_head|num_attention_heads\w*", HEADS),
    (r"(q|kv|o)_lora_rank|\w+_rank", 16),
    (r"hidden_size_per_layer_input", 16),
    (r"(\w+_)?(intermediate_size|ffn_dim|feedforward_dim|ffn_hidden_size|d_ff|dim_feedforward|d_inner|mlp_dim|dim_ff)"
     r"|n_inner|dff", 64),
    (r"(\w+_)?(hidden_size|hidden_size_global|d_latents|hidden_dim|d_model|embed_dim|projection_dim|proj_dim|emb_dim|n_embd|embedding_size|width)"
     r"|embedding_dim|dim|out_hidden_size|conv_dim|classifier_proj_size|pooler_output_size|output_dim", WIDTH),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_moe_experts", 4),
    (r"num_experts_per_tok|moe_topk|moe_k|top_k_experts|moe_top_k", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"num_queries|num_query_tokens|num_latents|two_stage_num_proposals", 12),
    (r"num_denoising", 4),
    (r"mask_time_length|mask_feature_length", 2),
    (r"conv_kernel_size|conv_depthwise_kernel_size|num_conv_pos_embeddings", 5),
    (r"num_conv_pos_embedding_groups", 4),
    (r"sliding_window|window_length|local_attention|attention_window|chunk_size|mamba_chunk_size|block_size", 8),
    (r"num_mel_bins", 16),
    (r"layer_group_size|attn_layer_period|full_attention_interval|global_attn_every_n_layers", 2),
    (r"attn_layer_offset", 1),
    (r"mm_tokens_per_image|image_seq_length", 16),
)  # fmt: skip
_NEVER = re.compile(r".*(label|class|cost|coefficient|codebook|filter|vocoder|group_detr|num_channels|_layer_id).*")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """What is made small; fewer and fewer things until an architecture's parts fit each other again."""

    widths: bool = True
    """hidden sizes, heads, experts"""
    shapes: bool = True
    """images, patches, windows, depths of stages"""
    layers: int = 4


EXTENTS = (Extent(), Extent(widths=False), Extent(widths=False, shapes=False))


def shrink(config_class: Any, extent: Extent = EXTENTS[0], *, given: Any = None) -> Any:
    """A small instance of a configuration class.

    ``given`` is the part of a larger configuration that it stands for: what that says besides defaults is kept.
    """
    if given is not None and given.model_type == "timm_wrapper":
        return copy.deepcopy(given)  # it names a model of timm, which has its own sizes
    default = config_class()
    given = given or default
    parts = [name for name in _field_names(given) if _is_config(_get(given, name))]
    layers = extent.layers if len(parts) < 2 and not _is_pair(given) else max(1, extent.layers // 2)
    inner = dataclasses.replace(extent, layers=layers)
    own = dataclasses.replace(extent, layers=max(layers, _least_layers(given)))
    old_layers = _old_layers(given)
    small: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        value = _get(given, field.name)
        if _is_config(value):
            small[field.name] = shrink(type(value), inner, given=value)
        elif field.init and field.name not in _INTERNAL and not _is_derived(field, value, default):
            small[field.name] = _shrunk(field.name, value, own, old_layers)
    _relate(small, given)
    small |= _ODD.get(given.model_type, {}) if extent.shapes else {}
    if "_out_indices" in small:  # of a backbone, which takes them by this name only
        small["out_indices"] = small.pop("_out_indices")
        small.pop("_out_features", None)
    said = {name: value for name, value in small.items() if _is_config(value) or value != _get(default, name)}
    return config_class(**said)


def _is_derived(field: dataclasses.Field[Any], value: Any, default: Any) -> bool:
    """A field that is None unless said is left to the configuration itself, unless this one says something else."""
    return field.default is None and bool(value == _get(default, field.name))


def _least_layers(config: Any) -> int:
    """One for every state that is handed on, and for every stage that a list of depths names."""
    features = _get(config, "out_indices") if _old_layers(config) else None
    names = (name for name in _field_names(config) if _LAYERS.fullmatch(name) and not _NO_LAYERS.fullmatch(name))
    stages = [_get(config, name) for name in names]
    return max((len(each) for each in [features, *stages] if isinstance(each, list | tuple)), default=0)


def _old_layers(config: Any) -> int | None:
    """How many layers there were, if a field of its own says so (rather than a list of depths)."""
    for name in _field_names(config):
        value = _get(config, name)
        if _LAYERS.fullmatch(name) and not _NO_LAYERS.fullmatch(name) and isinstance(value, int) and value > 1:
            return value
    return None


def _relate(small: dict[str, Any], given: Any) -> None:
    """Fields that follow from others: what was equal stays equal, products stay products."""
    for one, other in _FOLLOWS:
        if small.get(one) is not None and _get(given, one) == _get(given, other) and small.get(other) is not None:
            small[one] = small[other]
    expand, width, head = (small.get(name) for name in ("expand", "hidden_size", "head_dim"))
    if isinstance(expand, int) and isinstance(width, int) and isinstance(head, int) and "num_heads" in small:
        small["num_heads"] = expand * width // head
    rope = small.get("rope_parameters") or _get(given, "rope_parameters")
    if isinstance(rope, dict) and isinstance(rope.get("mrope_section"), list | tuple) and isinstance(head, int):
        small["rope_parameters"] = {**rope, "mrope_section": sections(head // 2)}


def sections(half: int) -> list[int]:
    """Of half a head among the three axes of rotary positions."""
    return [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]


_ODD: dict[str, dict[str, Any]] = {  # what these check of themselves as soon as they are made
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "seggpt": {"merge_index": 0, "intermediate_hidden_state_indices": [0, 1, 2, 3]},
    "depth_pro": {"patch_size": IMAGE},
    "timesfm2_5": {"context_length": 128},  # a step of its running statistics for each 32
    "tvp": {"max_img_size": IMAGE, "visual_prompt_size": 8},
}
_FOLLOWS = (
    ("num_key_value_heads", "num_attention_heads"), ("upsample_groups", "hidden_size"),
    ("entity_vocab_size", "vocab_size"), ("qk_head_dim", "head_dim"),
)  # fmt: skip
_INTERNAL = ("transformers_version", "architectures", "_commit_hash", "id2label", "label2id", "dtype")


def _shrunk(name: str, value: Any, extent: Extent, old_layers: int | None) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    for applies, smaller in _SPECIAL:
        if applies(name, value):
            return smaller(name, value, extent.layers)
    if extent.shapes:
        for applies, smaller in _SHAPES:
            if applies(name, value):
                return smaller(name, value, extent.layers)
    if isinstance(value, list | tuple):
        return _shorter(name, value, extent.layers, old_layers)
    if extent.widths and isinstance(value, int) and not _NEVER.fullmatch(name):
        for pattern, size in _RULES:
            if re.fullmatch(pattern, name):
                return min(value, size) if value > 0 else value
    return min(value, VOCABULARY) if re.fullmatch(_RULES[0][0], name) and isinstance(value, int) else value


def _shorter(name: str, value: Any, layers: int, old_layers: int | None) -> Any:
    """One entry per layer: the first ones; indices of layers: those that are left; else as it is."""
    if old_layers is None or old_layers <= layers:
        return value
    if len(value) == old_layers:
        return type(value)(value[:layers])
    is_index = bool(value) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    if not is_index or _NO_LAYERS.fullmatch(name) or not _INDICES.search(name):
        return value
    if len(value) <= layers and min(value) >= 0:  # spread over the layers that are left, the last one among them
        return type(value)((place + 1) * layers // len(value) - 1 for place in range(len(value)))
    return type(value)(dict.fromkeys(min(layers - 1, each * layers // old_layers) for each in value if each >= 0))


def _token(name: str, value: Any, _: int) -> Any:
    """Special tokens below ``FIRST_FREE_TOKEN``, the same for the same name in every part of a configuration."""
    if isinstance(value, list | tuple):
        return type(value)([2] * len(value))
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    if value < FIRST_FREE_TOKEN - 10:
        return value
    return known.get(name, 3 + sum(map(ord, name.replace("_index", "_id"))) % (FIRST_FREE_TOKEN - 4))


_Rule = tuple[Callable[[str, Any], bool], Callable[[str, Any, int], Any]]
_SPECIAL: tuple[_Rule, ...] = (
    (lambda name, _: bool(re.search(r"token_(id|index)s?$", name)), _token),
    (lambda name, value: bool(_LAYERS.fullmatch(name)) and isinstance(value, int) and not _NO_LAYERS.fullmatch(name),
        lambda _, value, layers: min(value, layers)),
    (lambda name, value: name == "num_frames" and isinstance(value, int), lambda *_: 4),
    (lambda name, value: name == "per_layer_config" and isinstance(value, dict),
        lambda _, value, layers: {key: each for key, each in value.items() if int(key) < layers}),
    (lambda name, _: name == "num_kv_shared_layers", lambda *_: 0),
    (lambda name, value: name.startswith("vision_feature_layer") and isinstance(value, list | tuple),
        lambda _, value, __: type(value)(-1 - place % 2 for place in range(len(value)))),
    (lambda name, value: name == "embed_dim" and isinstance(value, int) and value % 3 == 0 and value < 200,
        lambda _, value, __: value),  # widths of a first stage, with heads in a list
)  # fmt: skip
_SHAPES: tuple[_Rule, ...] = (
    (lambda name, value: bool(_LAYERS.fullmatch(name)) and isinstance(value, list | tuple) and bool(value)
        and all(isinstance(each, int) for each in value) and not _NO_LAYERS.fullmatch(name),
        lambda _, value, __: type(value)(1 for ___ in value)),
    (lambda name, value: name in ("image_size", "img_size", "pretrain_image_size") and isinstance(value, int),
        lambda *_: IMAGE),
    (lambda name, value: name == "image_size" and isinstance(value, list | tuple) and len(value) == 2,
        lambda _, value, __: type(value)([IMAGE, IMAGE])),
    (lambda name, _: name == "backbone_feature_sizes",
        lambda _, value, __: [[IMAGE // 4 // 2**place] * 2 for place in range(len(value))]),
    (lambda name, value: name == "patch_size" and isinstance(value, int), lambda _, value, __: min(value, 8)),
    (lambda name, value: name == "window_size" and isinstance(value, int) and value < 16, lambda *_: 2),
)  # fmt: skip


def _is_pair(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def _is_config(value: Any) -> bool:
    return hasattr(value, "model_type") and hasattr(value, "to_dict")


def _field_names(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _get(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # heterogeneous configurations refuse to name one value for all layers
        return None
