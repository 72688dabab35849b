"""Make a transformers configuration small without knowing its architecture: by the names of its fields.

Four layers (two per tower of several), width 64, four heads, 128 tokens, 32 x 32 images.  A field whose default is
None is left to the configuration's own ``__post_init__``, so that what it derives (``layer_types``, ``head_dim``)
stays consistent.  Lists of widths stay: only depths are cut.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

__all__ = ["IMAGE", "VOCABULARY", "shrink"]

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
    r"|.*target_layers|.*(kv_shared|shared|dense|adapter|residual|ctc|nextn_predict|mtp|mapper|postnet)_layers"
)
_RULES: tuple[tuple[str, int], ...] = (
    (r"(text_)?vocab_size|vocab_size_per_layer_input|t2u_vocab_size", VOCABULARY),
    (r"n_positions|n_ctx|(\w+_)?max_position_embeddings|max_(source|target)_positions|max_seq_len|seq_length", 128),
    (r"head_dim|\w+_head_dim|v_head_dim|d_kv|mamba_d_head|mamba_head_dim|d_head|dim_head|rotary_dim|kv_channels", HEAD),
    (r"(\w+_)?(num_)?(key_value|kv)_heads|num_attention_groups", 2),
    (r"mamba_n_heads|mamba_num_heads", 2 * WIDTH // HEAD),
    (r"(\w+_)?(num_)?(attention_)?heads?|n_head|num_attention_heads\w*", HEADS),
    (r"(q|kv|o)_lora_rank|\w+_rank", 16),
    (r"hidden_size_per_layer_input", 16),
    (r"(\w+_)?(intermediate_size|ffn_dim|feedforward_dim|ffn_hidden_size|d_ff|dim_feedforward|d_inner|mlp_dim|dim_ff)"
     r"|n_inner|dff", 64),
    (r"(\w+_)?(hidden_size|hidden_dim|d_model|embed_dim|projection_dim|proj_dim|emb_dim|n_embd|embedding_size|width)"
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


def shrink(config_class: Any, *, layers: int = 4, widths: bool = True, given: Any = None) -> Any:
    """A small instance of a configuration class; ``widths=False`` cuts only layers, tokens and images.

    ``given`` is the part of a larger configuration that it stands for: what that says besides defaults is kept.
    """
    default = config_class()
    given = given or default
    parts = [name for name in _field_names(given) if _is_config(_get(given, name))]
    own = layers if len(parts) < 2 and not _is_pair(given) else max(1, layers // 2)
    small: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        value = _get(given, field.name)
        is_said = field.default is not None or value != _get(default, field.name)
        if _is_config(value):
            small[field.name] = shrink(type(value), layers=own, widths=widths, given=value)
        elif is_said and field.init and field.name not in _INTERNAL:
            found = _shrunk(field.name, value, own, _get(given, "num_hidden_layers"), widths)
            if found != _get(default, field.name):
                small[field.name] = found
    return config_class(**small)


_INTERNAL = ("transformers_version", "architectures", "_commit_hash", "id2label", "label2id", "dtype")


def _shrunk(name: str, value: Any, layers: int, old_layers: Any, widths: bool) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    for applies, smaller in _SPECIAL:
        if applies(name, value):
            return smaller(name, value, layers)
    if isinstance(value, list | tuple):
        return _shorter(name, value, layers, old_layers)
    if widths and isinstance(value, int) and not _NEVER.fullmatch(name):
        for pattern, size in _RULES:
            if re.fullmatch(pattern, name):
                return min(value, size) if value > 0 else value
    return value


def _shorter(name: str, value: Any, layers: int, old_layers: Any) -> Any:
    """One entry per layer: the first ones; indices of layers: those that are left; else as it is."""
    if isinstance(old_layers, int) and len(value) == old_layers > layers:
        return type(value)(value[:layers])
    is_index = all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    if is_index and value and re.search(r"index|indices|_layers$|_idxs$|hook_ids|layer_ids", name):
        old = old_layers if isinstance(old_layers, int) else max(value) + 1
        return type(value)(dict.fromkeys(min(layers - 1, each * layers // max(old, 1)) for each in value if each >= 0))
    return value


def _token(name: str, value: Any, _: int) -> Any:
    """Special tokens below ``FIRST_FREE_TOKEN``, the same for the same name in every part of a configuration."""
    if isinstance(value, list | tuple):
        return type(value)([2] * len(value))
    known = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    if value < FIRST_FREE_TOKEN - 10:
        return value
    return known.get(name, 3 + sum(map(ord, name.replace("_index", "_id"))) % (FIRST_FREE_TOKEN - 4))


_SPECIAL: tuple[tuple[Callable[[str, Any], bool], Callable[[str, Any, int], Any]], ...] = (
    (lambda name, _: bool(re.search(r"token_(id|index)s?$", name)), _token),
    (lambda name, value: bool(_LAYERS.fullmatch(name)) and isinstance(value, list | tuple) and bool(value)
        and all(isinstance(each, int) for each in value) and not _NO_LAYERS.fullmatch(name),
        lambda _, value, __: type(value)(1 for ___ in value)),
    (lambda name, value: bool(_LAYERS.fullmatch(name)) and isinstance(value, int) and not _NO_LAYERS.fullmatch(name),
        lambda _, value, layers: min(value, layers)),
    (lambda name, value: name in ("image_size", "img_size", "pretrain_image_size") and isinstance(value, int),
        lambda *_: IMAGE),
    (lambda name, value: name == "image_size" and isinstance(value, list | tuple) and len(value) == 2,
        lambda _, value, __: type(value)([IMAGE, IMAGE])),
    (lambda name, value: name == "patch_size" and isinstance(value, int), lambda _, value, __: min(value, 8)),
    (lambda name, value: name == "num_frames", lambda *_: 4),
    (lambda name, _: name == "num_kv_shared_layers", lambda *_: 0),
    (lambda name, value: name == "embed_dim" and isinstance(value, int) and value % 3 == 0 and value < 200,
        lambda _, value, __: value),  # widths of a first stage, with heads in a list
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
