"""What a transformers config says of its decoder: every layer's attention, and what a token leaves in the cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autopart.errors import UsageError

__all__ = ["Attention", "Decoder", "decoder_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Of one layer."""

    num_heads: int
    """query heads"""
    num_key_value_heads: int
    cached_elements: int
    """of one token's keys and values"""
    prefill_flops: int
    """of one query with one key, all heads"""
    decode_flops: int
    window: int | None
    """most tokens that are looked back at; None: all"""

    def num_keys(self, num_tokens: int) -> int:
        """How many of a sequence's tokens are looked at."""
        return num_tokens if self.window is None else min(self.window, num_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """Of a model that generates text token by token."""

    attentions: tuple[Attention, ...]
    num_experts_per_token: int
    """0: dense"""
    vocabulary: int
    most_tokens: int | None
    """longest sequence that the model knows positions of"""


ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
"""of ``layer_types``: those that keep keys and values"""


def decoder_of(model: Any, name: str) -> Decoder:
    """The decoder of a model with a transformers config.

    Raises:
        UsageError: it has none, or keeps another state than keys and values.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", "") != "input_ids" or config.is_encoder_decoder:
        raise UsageError(
            f"{name} is not a transformers decoder; --mode generate plans those (hf:DIR); use --mode infer for others"
        )
    text = config.get_text_config()
    kinds = tuple(getattr(text, "layer_types", None) or ())
    _refuse_other_states(kinds, text, name)
    windows = _windows(text, kinds)
    return Decoder(
        attentions=tuple(_attention(text, window) for window in windows),
        num_experts_per_token=getattr(text, "num_experts_per_tok", None) or 0,
        vocabulary=text.vocab_size, most_tokens=getattr(text, "max_position_embeddings", None),
    )  # fmt: skip


def _refuse_other_states(kinds: Iterable[str], config: Any, name: str) -> None:
    other = sorted(set(kinds) - ATTENDING)
    if not getattr(config, "num_attention_heads", None):
        other = other or [f"{config.model_type} layers"]
    if other:
        raise UsageError(
            f"{name} has {', '.join(other)}, whose state between tokens is not modelled; --mode generate plans "
            "decoders that keep keys and values"
        )


def _windows(config: Any, kinds: tuple[str, ...]) -> tuple[int | None, ...]:
    """Per layer, how far it looks back."""
    sliding: int | None = getattr(config, "sliding_window", None)
    if not kinds:
        used = sliding if getattr(config, "use_sliding_window", True) else None
        return (used,) * int(config.num_hidden_layers)
    known = {"sliding_attention": sliding, "chunked_attention": getattr(config, "attention_chunk_size", None)}
    return tuple(known.get(kind) for kind in kinds)


def _attention(config: Any, window: int | None) -> Attention:
    heads = config.num_attention_heads
    latent = getattr(config, "kv_lora_rank", None)
    if latent:
        # DeepSeek-V2 (2024), section 2.1: what is cached is the latent vector and the rotary key; in decoding the
        # projections out of it are absorbed into queries and outputs, which then work on it
        rope, plain, value = config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim
        return Attention(
            num_heads=heads, num_key_value_heads=1, cached_elements=latent + rope,
            prefill_flops=2 * heads * (plain + rope + value), decode_flops=2 * heads * (2 * latent + rope),
            window=window,
        )
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = _num_key_value_heads(config)
    return Attention(
        num_heads=heads, num_key_value_heads=shared, cached_elements=2 * shared * size,
        prefill_flops=4 * heads * size, decode_flops=4 * heads * size, window=window,
    )  # fmt: skip


def _num_key_value_heads(config: Any) -> int:
    """Falcon and GPT-BigCode say it in words of their own."""
    if getattr(config, "new_decoder_architecture", False):
        return int(config.num_kv_heads)
    if getattr(config, "multi_query", False):
        return 1
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
