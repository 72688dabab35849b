"""What lives in the zoo: a model with the inputs of one call, built in the process that examines it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Case", "NotBuiltError", "Specimen"]


class NotBuiltError(Exception):
    """The zoo itself could not make the small model or an input that it takes: says nothing about autopart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """One entry of the zoo; ``name`` is ``family:kind[/head]``."""

    name: str
    build: Callable[[], Case]

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def kind(self) -> str:
        """What is counted as a type: the transformers model type, the timm module, the torchvision name."""
        return self.name.partition(":")[2].partition("/")[0]
