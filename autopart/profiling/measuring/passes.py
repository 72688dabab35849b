"""Runs of a whole model that were measured before a call was killed."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError

from autopart import cache
from autopart.profiling.measuring.layerwise import LayerTimes

__all__ = ["keep_passes", "read_passes"]

_ADAPTER = TypeAdapter(list[LayerTimes])


def keep_passes(key: Sequence[str], passes: Sequence[LayerTimes]) -> None:
    """Keep these runs under a key; none once the profile is there."""
    cache.write("passes", key, _ADAPTER.dump_json(list(passes)))


def read_passes(key: Sequence[str], num_layers: int) -> tuple[LayerTimes, ...]:
    """The runs kept under a key; none if there are none that fit."""
    content = cache.read("passes", key)
    if content is None:
        return ()
    try:
        passes = _ADAPTER.validate_json(content)
    except ValidationError:
        return ()
    return tuple(each for each in passes if len(each[0]) == len(each[1]) == num_layers)
