"""All families of the zoo."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from tests.hazards import HAZARDS
from tests.zoology import hf, unets, vision
from tests.zoology.specimen import Case, Specimen

__all__ = ["FAMILIES", "find", "specimens"]

def _hazards() -> list[Specimen]:
    return [Specimen(name=f"hazard:{name}", build=functools.partial(_hazard, name)) for name in HAZARDS]


def _hazard(name: str) -> Case:
    torch.manual_seed(0)
    found = HAZARDS[name]
    return Case(model=found.build(), args=found.inputs(), kwargs=dict(found.kwargs))


FAMILIES: dict[str, Callable[[], list[Specimen]]] = {
    "hf": hf.specimens,
    "timm": vision.timm_specimens,
    "torchvision": vision.torchvision_specimens,
    "unet": unets.specimens,
    "hazard": _hazards,
}


def specimens(family: str | None = None) -> list[Specimen]:
    """Those of a family, or all; a family whose package is not installed has none."""
    return [each for name, make in FAMILIES.items() if family in (None, name) for each in make()]


def find(name: str) -> Specimen:
    """The one of this name."""
    return next(each for each in specimens(name.partition(":")[0]) if each.name == name)
