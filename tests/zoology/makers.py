"""Makers of single inputs of transformers models, by the names that forward signatures use."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch

from tests.zoology.shrinking import FIRST_FREE_TOKEN, IMAGE

__all__ = ["BATCH", "Maker", "makers_of"]

BATCH, TOKENS, SAMPLES, FRAMES = 2, 8, 3840, 32
GRID = (1, 4, 4)
"""patches of an image, in frames, rows and columns, as the Qwen family counts them"""

Maker = Callable[[Any], Any]


def makers_of(name: str) -> tuple[Maker, ...]:
    """Guesses at the input of this name, the likeliest first; none if the name says nothing."""
    if name in _MAKERS:
        return _MAKERS[name]
    return next((found for pattern, found in _BY_PATTERN if re.fullmatch(pattern, name)), ())


def text_part(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _vocabulary(config: Any) -> int:
    for part in (text_part(config), config):
        size = getattr(part, "vocab_size", None)
        if isinstance(size, int) and size > 1:
            return size
    return FIRST_FREE_TOKEN + 1


def _tokens(config: Any, length: int = TOKENS) -> torch.Tensor:
    top = _vocabulary(config)
    return torch.randint(min(FIRST_FREE_TOKEN, top // 2), top, (BATCH, length))


def _codes(config: Any) -> torch.Tensor:
    """A row per codebook of each sample, as music models take them."""
    number = getattr(getattr(config, "decoder", config), "num_codebooks", 4)
    return torch.randint(0, 100, (BATCH * number, TOKENS))


def _mask(_: Any) -> torch.Tensor:
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[1, TOKENS - 3 :] = 0
    return mask


def part_with(config: Any, *names: str) -> Any:
    for name in ("vision_config", "audio_config", "encoder_config", "backbone_config"):
        part = getattr(config, name, None)
        if part is not None and any(getattr(part, each, None) is not None for each in names):
            return part
    return config


def _images(size: int | None = None, frames: int | bool = False) -> Maker:
    def make(config: Any) -> torch.Tensor:
        part = part_with(config, "image_size", "num_channels")
        own = getattr(part, "image_size", None) or 64
        height, width = (size, size) if size else (own, own) if isinstance(own, int) else tuple(own)[-2:]
        channels = getattr(part, "num_channels", None) or getattr(part, "in_channels", None) or 3
        middle = (getattr(part, "num_frames", 4) if frames is True else int(frames),) if frames else ()
        return torch.randn(BATCH, *middle, channels if isinstance(channels, int) else 3, height, width)

    return make


def _patch_width(config: Any) -> int:
    part = part_with(config, "patch_size")
    sizes = [getattr(part, name, None) or 1 for name in ("patch_size", "temporal_patch_size")]
    size, frames = (each if isinstance(each, int) else int(each[0]) for each in sizes)
    channels = getattr(part, "in_channels", None) or getattr(part, "num_channels", None) or 3
    return int(channels) * frames * size * size


def _patches(config: Any) -> torch.Tensor:
    """A row per patch of two images, as the Qwen family takes them."""
    return torch.randn(BATCH * math.prod(GRID), _patch_width(config))


def _patches_by_image(config: Any) -> torch.Tensor:
    return torch.randn(BATCH, math.prod(GRID), _patch_width(config))


def _patch_places(_: Any) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(GRID[1]), torch.arange(GRID[2])).expand(BATCH, -1, -1)


def _grid(*_: Any) -> torch.Tensor:
    return torch.tensor([GRID] * BATCH)


def _shapes(*_: Any) -> torch.Tensor:
    return torch.tensor([GRID[1:]] * BATCH)


def _mels(config: Any) -> int:
    part = part_with(config, "num_mel_bins", "input_feat_per_channel", "feature_size")
    names = ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_feat_size", "input_dim", "input_size")
    return next((value for name in names if isinstance(value := getattr(part, name, None), int)), 80)


def _frames(config: Any) -> int:
    part = part_with(config, "max_source_positions")
    return 2 * (getattr(part, "max_source_positions", None) or FRAMES)


def _encoder_width(config: Any) -> int:
    names = ("encoder_hidden_size", "cross_attention_hidden_size", "hidden_size", "d_model")
    return next(int(value) for name in names if isinstance(value := getattr(config, name, None), int))


def _boxes(*_: Any) -> torch.Tensor:
    corner = torch.randint(0, 500, (BATCH, TOKENS, 2))
    return torch.cat([corner, corner + torch.randint(1, 400, (BATCH, TOKENS, 2))], -1)


_MAKERS: dict[str, tuple[Maker, ...]] = {
    "input_ids": (_tokens, lambda config: _tokens(config, 16), _codes),
    "decoder_input_ids": (lambda config: _tokens(config, 6),),
    "attention_mask": (_mask, lambda _: torch.ones(BATCH, TOKENS, dtype=torch.long)),
    "token_type_ids": (lambda _: torch.zeros(BATCH, TOKENS, dtype=torch.long),),
    "pixel_values": (
        _images(), _images(64), _images(frames=True), _images(128), _images(64, frames=True), _patches,
        _patches_by_image, _images(224), _images(2 * IMAGE, frames=2)),
    "image_grid_thw": (_grid,),
    "grid_thw": (_grid,),
    "spatial_shapes": (_shapes,),
    "merge_sizes": (lambda _: torch.ones(BATCH, dtype=torch.long),),
    "target_sizes": (_shapes,),
    "pixel_attention_mask": (
        lambda _: torch.ones(BATCH, math.prod(GRID), dtype=torch.long),
        lambda _: torch.ones(BATCH, 1, IMAGE, IMAGE, dtype=torch.bool),
    ),
    "pixel_position_ids": (_patch_places,),
    "image_position_ids": (_patch_places,),
    "image_attention_mask": (lambda _: torch.ones(BATCH, TOKENS, 1, dtype=torch.long),),
    "mm_token_type_ids": (lambda _: torch.zeros(BATCH, TOKENS, dtype=torch.long),),
    "image_sizes": (lambda _: torch.tensor([[IMAGE, IMAGE]] * BATCH),),
    "pixel_values_videos": (_images(frames=True), _images(64, frames=True)),
    "pixel_mask": (lambda _: torch.ones(BATCH, IMAGE, IMAGE, dtype=torch.long),),
    "input_features": (
        lambda config: torch.randn(BATCH, _mels(config), _frames(config)),
        lambda config: torch.randn(BATCH, FRAMES, _mels(config)),
        lambda config: torch.randn(BATCH, _mels(config), 4 * FRAMES),
        lambda config: torch.randn(BATCH, FRAMES, 160),
        lambda config: torch.randn(BATCH, 1, 4 * FRAMES, _mels(config)),
    ),
    "input_values": (
        lambda _: torch.randn(BATCH, SAMPLES),
        lambda _: torch.randn(BATCH, 1, SAMPLES),
        lambda config: torch.randn(BATCH, getattr(config, "max_length", 64), _mels(config)),
    ),
    "bbox": (_boxes,),
    "labels": (_tokens,),
    "inputs": (_tokens,),
    "audio_mel": (lambda config: torch.randn(BATCH, FRAMES, _mels(config)),),
    "audio_mel_mask": (lambda _: torch.zeros(BATCH, FRAMES, dtype=torch.bool),),
    "latents": (
        lambda config: torch.randn(BATCH, TOKENS, text_part(config).hidden_size),
        lambda config: torch.randn(BATCH, text_part(config).hidden_size, TOKENS),
    ),
    "query_embeds": (lambda config: torch.randn(BATCH, 4, config.hidden_size),),
    "hidden_states": (lambda config: torch.randn(BATCH, TOKENS, config.hidden_size), _patches),
    "inputs_embeds": (lambda config: torch.randn(BATCH, TOKENS, text_part(config).hidden_size),),
    "encoder_hidden_states": (lambda config: torch.randn(BATCH, TOKENS, _encoder_width(config)),),
    "visual_feats": (lambda config: torch.randn(BATCH, 5, config.visual_feat_dim),),
    "visual_pos": (lambda _: torch.rand(BATCH, 5, 4),),
    "visual_embeds": (lambda config: torch.randn(BATCH, 5, config.visual_embedding_dim),),
    "input_features_mask": (
        lambda config: torch.ones(BATCH, _frames(config), dtype=torch.long),
        lambda config: torch.ones(BATCH, FRAMES, dtype=torch.long),
        lambda config: torch.ones(BATCH, 4 * FRAMES, dtype=torch.long),
    ),
    "feature_attention_mask": (
        lambda config: torch.ones(BATCH, _frames(config), dtype=torch.long),
        lambda config: torch.ones(BATCH, FRAMES, dtype=torch.long),
    ),
    "padding_mask": (lambda _: torch.ones(BATCH, SAMPLES, dtype=torch.bool),),
    "audio_codes": (lambda _: torch.randint(0, 100, (BATCH, 8, TOKENS)),),
    "input_points": (lambda _: torch.rand(BATCH, 1, 2, 2) * IMAGE,),
    "task_inputs": (lambda config: _tokens(config, 77),),
    "text_inputs": (lambda config: _tokens(config, 77),),
    "position_ids": (lambda _: torch.arange(TOKENS).expand(BATCH, TOKENS),),
    "speaker_embeddings": (lambda config: torch.randn(BATCH, getattr(config, "speaker_embedding_dim", 512)),),
    "decoder_input_values": (lambda config: torch.randn(BATCH, 6, config.num_mel_bins),),
    "states": (lambda config: torch.randn(BATCH, TOKENS, config.state_dim),),
    "actions": (lambda config: torch.randn(BATCH, TOKENS, config.act_dim),),
    "rewards": (lambda _: torch.randn(BATCH, TOKENS, 1),),
    "returns_to_go": (lambda _: torch.randn(BATCH, TOKENS, 1),),
    "timesteps": (lambda _: torch.arange(TOKENS).expand(BATCH, TOKENS),),
    "input_mask": (lambda _: torch.ones(BATCH, TOKENS, dtype=torch.long),),
    "spectrogram": (lambda config: torch.randn(BATCH, FRAMES, getattr(config, "model_in_dim", _mels(config))),),
    "past_values": (lambda config: torch.randn(BATCH, _history(config), *_channels(config)),),
    "past_time_features": (lambda config: torch.randn(BATCH, _history(config), config.num_time_features),),
    "past_observed_mask": (lambda config: torch.ones(BATCH, _history(config), *_channels(config)),),
    "future_values": (lambda config: torch.randn(BATCH, config.prediction_length, *_channels(config)),),
    "future_time_features": (
        lambda config: torch.randn(BATCH, config.prediction_length, config.num_time_features),
    ),
}
_BY_PATTERN: tuple[tuple[str, tuple[Maker, ...]], ...] = (
    (r"\w*input_ids", (_tokens,)),
    (r"\w*grid_thw", (_grid,)),
    (r"\w*attention_mask|\w*_mask", (lambda _: torch.ones(BATCH, TOKENS, dtype=torch.long),)),
    (r"\w*(embeds|hidden_states)", (lambda config: torch.randn(BATCH, TOKENS, text_part(config).hidden_size),)),
    (r"state", (lambda config: torch.randn(BATCH, getattr(config, "max_state_dim", 32)),)),
)


def _history(config: Any) -> int:
    lags = getattr(config, "lags_sequence", None)
    return int(config.context_length) + (max(lags) if lags else 0)


def _channels(config: Any) -> tuple[int, ...]:
    number = getattr(config, "num_input_channels", getattr(config, "input_size", 1))
    return (number,) if number > 1 or hasattr(config, "num_input_channels") else ()
