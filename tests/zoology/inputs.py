"""Inputs for a transformers model by the names in its forward signature; what is missing, its own errors tell."""

from __future__ import annotations

import inspect
import itertools
import re
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.zoology.makers import BATCH, makers_of

__all__ = ["inputs_for"]

MAX_TRIES, MAX_MISSING = 30, 8
_SILENT = ("target_sizes", "spatial_shapes")  # passed on to an inner module by **kwargs
_PLACEHOLDERS = ("image_token_id", "image_token_index", "audio_token_id", "audio_token_index", "video_token_id")


def inputs_for(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments that the model takes in train and in eval mode.

    Raises:
        the model's own error for the first guess, if no guess works.
    """
    parameters = inspect.signature(model.forward).parameters
    first: Exception | None = None
    for names in _starts(model, parameters):
        for _ in range(MAX_MISSING):  # every error may name an input that is missing
            works, errors = _first_that_works(model, names)
            if works is not None:
                return works
            first = first or errors[0]
            missing = next((found for error in errors if (found := _missing_in(error, parameters, names))), None)
            if missing is None:
                break
            names = [*names, missing]
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
    if "pixel_values" in main and "input_ids" in parameters:
        yield [*together, "input_ids"]
    if "input_ids" in together and "attention_mask" in parameters:
        yield [*together, "attention_mask"]
    yield together
    if "pixel_values" in parameters and "pixel_values" not in together:
        yield [*together, "pixel_values"]
    yield list(dict.fromkeys([*main, *required]))


def _missing_in(error: Exception, parameters: Any, known: list[str]) -> str | None:
    """The first input that a message names; if it only says None, the lines of code that stumbled over it do."""
    told = str(error)
    if "None" in told:
        told += " ".join(str(frame.line) for frame in reversed(traceback.extract_tb(error.__traceback__)[-6:]))
    words = re.findall(r"[a-z_0-9]+", told.replace("inputs_embeds", "input_ids inputs_embeds"))
    open_names = [*parameters, *(_SILENT if "kwargs" in parameters else ())]
    return next((word for word in words if word in open_names and word not in known and makers_of(word)), None)


def _first_that_works(model: nn.Module, names: list[str]) -> tuple[dict[str, Any] | None, list[Exception]]:
    errors: list[Exception] = []
    unknown = [name for name in names if not makers_of(name)]
    if unknown:
        return None, [ValueError(f"no maker for the inputs {unknown}")]
    for makers in itertools.islice(itertools.product(*map(makers_of, names)), MAX_TRIES):
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
    if not found or "input_ids" not in given or len(given["input_ids"]) != BATCH:
        return None
    tokens = [getattr(model.config, name, None) for name in _PLACEHOLDERS]
    per_sample = int(found[2]) // BATCH
    counts = (per_sample, per_sample // (model.config.get_text_config().hidden_size or 1))
    for token, count in itertools.product([each for each in tokens if each is not None], counts):
        if 0 < count < 512:
            try:
                trial = _padded(model, given, token, count)
                _run(model, trial)
                return trial
            except Exception:  # the next count, then the next guess: the zoo reports the first error
                continue
    return None


def _padded(model: Any, given: dict[str, Any], token: int, count: int) -> dict[str, Any]:
    trial = {**given, "input_ids": torch.cat([given["input_ids"], torch.full((BATCH, count), token)], 1)}
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        trial["mm_token_type_ids"] = (trial["input_ids"] == token).long()
    if "attention_mask" in given:
        trial["attention_mask"] = torch.ones_like(trial["input_ids"])
    return trial
