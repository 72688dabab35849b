"""Inputs for a transformers model by the names in its forward signature; what is missing, its own errors tell."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tests.zoology.shrinking import FIRST_FREE_TOKEN, IMAGE

__all__ = ["inputs_for"]

BATCH, TOKENS, SAMPLES, FRAMES = 2, 8, 4000, 32
MAX_TRIES = 30

Maker = Callable[[Any], torch.Tensor]


def inputs_for(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments that the model takes in train and in eval mode.

    Raises:
        the model's own error for the first guess, if no guess works.
    """
    parameters = inspect.signature(model.forward).parameters
    first: Exception | None = None
    for names in _starts(model, parameters):
        for _ in range(4):  # every error may name an input that is missing
            works, errors = _first_that_works(model, names)
            if works is not None:
                return works
            first = first or errors[0]
            missing = _named_in(" ".join(map(str, errors)), parameters, names)
            if not missing:
                break
            names = [*names, *missing]
    raise first or ValueError("no inputs")


def _starts(model: Any, parameters: Any) -> Iterator[list[str]]:
    required = [name for name, each in parameters.items() if each.default is each.empty and each.kind in (1, 3)]
    main = [model.main_input_name] if model.main_input_name in parameters else []
    decoder = ["decoder_input_ids"] if "decoder_input_ids" in parameters else []
    together = list(dict.fromkeys([*main, *required, *decoder]))
    for media in ("pixel_values", "input_features"):  # a model of several kinds of input gets two of them, if it can
        if media in parameters and "input_ids" in together and media not in together:
            grid = ["image_grid_thw"] if "image_grid_thw" in parameters and media == "pixel_values" else []
            yield [*together, media, *grid]
    if "input_ids" in together and "attention_mask" in parameters:
        yield [*together, "attention_mask"]
    yield together
    if "pixel_values" in parameters and "pixel_values" not in together:
        yield [*together, "pixel_values"]
    yield list(dict.fromkeys([*main, *required]))


def _named_in(message: str, parameters: Any, known: list[str]) -> list[str]:
    words = re.findall(r"[a-z_0-9]+", message)
    return [name for name in dict.fromkeys(words) if name in parameters and name not in known and name in _MAKERS]


def _first_that_works(model: nn.Module, names: list[str]) -> tuple[dict[str, Any] | None, list[Exception]]:
    errors: list[Exception] = []
    unknown = [name for name in names if name not in _MAKERS]
    if unknown:
        return None, [ValueError(f"no maker for the inputs {unknown}")]
    for makers in itertools.islice(itertools.product(*(_MAKERS[name] for name in names)), MAX_TRIES):
        given: dict[str, Any] = {}
        try:
            given = {name: make(model.config) for name, make in zip(names, makers, strict=True)}
            _run(model, given)
            return given, []
        except Exception as error:
            errors.append(error)
            with_media = _with_placeholders(model, given, str(error))
            if with_media:
                return with_media, []
    return None, errors


def _run(model: nn.Module, given: dict[str, Any]) -> None:
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            model(**{name: each.clone() for name, each in given.items()})


def _with_placeholders(model: Any, given: dict[str, Any], message: str) -> dict[str, Any] | None:
    """With as many image tokens among the text as the model says that it has image features for."""
    found = re.search(r"tokens:? ?(\d+).*?features:?\D*(\d+)", message)
    token = next((getattr(model.config, name) for name in _PLACEHOLDERS if hasattr(model.config, name)), None)
    if not found or token is None or "input_ids" not in given:
        return None
    per_sample = int(found[2]) // BATCH
    for count in (per_sample, per_sample // (model.config.get_text_config().hidden_size or 1)):
        if 0 < count < 512:
            images = torch.full((BATCH, count), token)
            trial = {**given, "input_ids": torch.cat([given["input_ids"], images], 1)}
            if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
                trial["mm_token_type_ids"] = (trial["input_ids"] == token).long()
            if "attention_mask" in given:
                trial["attention_mask"] = torch.ones_like(trial["input_ids"])
            try:
                _run(model, trial)
                return trial
            except Exception:  # the next count, then the next guess: the zoo reports the first error
                continue
    return None


_PLACEHOLDERS = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index")


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _vocabulary(config: Any) -> int:
    for part in (_text(config), config):
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


def _part(config: Any, *names: str) -> Any:
    for name in ("vision_config", "audio_config", "encoder_config", "backbone_config"):
        part = getattr(config, name, None)
        if part is not None and any(getattr(part, each, None) is not None for each in names):
            return part
    return config


def _images(size: int | None = None, frames: bool = False) -> Maker:
    def make(config: Any) -> torch.Tensor:
        part = _part(config, "image_size", "num_channels")
        own = getattr(part, "image_size", None) or 64
        height, width = (size, size) if size else (own, own) if isinstance(own, int) else tuple(own)[-2:]
        channels = getattr(part, "num_channels", None) or getattr(part, "in_channels", None) or 3
        middle = (getattr(part, "num_frames", 4),) if frames else ()
        return torch.randn(BATCH, *middle, channels if isinstance(channels, int) else 3, height, width)

    return make


def _patches(config: Any) -> torch.Tensor:
    """A row per patch of two images of 4 x 4 patches, as the Qwen family takes them."""
    part = _part(config, "patch_size")
    size = part.patch_size if isinstance(part.patch_size, int) else part.patch_size[0]
    return torch.randn(BATCH * 16, 3 * getattr(part, "temporal_patch_size", 1) * size * size)


def _mels(config: Any) -> int:
    part = _part(config, "num_mel_bins", "input_feat_per_channel", "feature_size")
    names = ("num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim", "input_size")
    return next((value for name in names if isinstance(value := getattr(part, name, None), int)), 80)


def _frames(config: Any) -> int:
    part = _part(config, "max_source_positions")
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
    "pixel_values": (_images(), _images(64), _images(frames=True), _images(128), _images(64, frames=True), _patches),
    "image_grid_thw": (lambda _: torch.tensor([[1, 4, 4]] * BATCH),),
    "image_sizes": (lambda _: torch.tensor([[IMAGE, IMAGE]] * BATCH),),
    "pixel_values_videos": (_images(frames=True), _images(64, frames=True)),
    "pixel_mask": (lambda _: torch.ones(BATCH, IMAGE, IMAGE, dtype=torch.long),),
    "input_features": (
        lambda config: torch.randn(BATCH, _mels(config), _frames(config)),
        lambda config: torch.randn(BATCH, FRAMES, _mels(config)),
        lambda config: torch.randn(BATCH, _mels(config), 4 * FRAMES),
        lambda config: torch.randn(BATCH, FRAMES, 160),
    ),
    "input_values": (
        lambda _: torch.randn(BATCH, SAMPLES),
        lambda _: torch.randn(BATCH, 1, SAMPLES),
        lambda config: torch.randn(BATCH, getattr(config, "max_length", 64), _mels(config)),
    ),
    "bbox": (_boxes,),
    "labels": (_tokens,),
    "query_embeds": (lambda config: torch.randn(BATCH, 4, config.hidden_size),),
    "hidden_states": (lambda config: torch.randn(BATCH, TOKENS, config.hidden_size),),
    "inputs_embeds": (lambda config: torch.randn(BATCH, TOKENS, _text(config).hidden_size),),
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


def _history(config: Any) -> int:
    lags = getattr(config, "lags_sequence", None)
    return int(config.context_length) + (max(lags) if lags else 0)


def _channels(config: Any) -> tuple[int, ...]:
    number = getattr(config, "num_input_channels", getattr(config, "input_size", 1))
    return (number,) if number > 1 or hasattr(config, "num_input_channels") else ()
