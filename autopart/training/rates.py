"""Learning rates: a share of the full rate for every step, from its number alone, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from autopart.schema.training import LearningRateSchedule, Recipe

__all__ = ["SHAPES", "rate_share"]

SHAPES: dict[LearningRateSchedule, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""the share left when ``done`` of the steps after the warm-up are over; cosine: Loshchilov and Hutter 2017, eq. 5"""


def rate_share(recipe: Recipe, step: int) -> float:
    """The share of the full learning rate at a step, counted from 1.

    >>> recipe = Recipe(steps=10, optimizer="sgd", lr_schedule="linear", lr_warmup=2)
    >>> [rate_share(recipe, step) for step in (1, 2, 3, 7)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step <= recipe.lr_warmup:
        return step / recipe.lr_warmup
    done = (step - 1 - recipe.lr_warmup) / max(1, recipe.steps - recipe.lr_warmup)
    return recipe.lr_floor + (1 - recipe.lr_floor) * SHAPES[recipe.lr_schedule](min(1.0, done))
