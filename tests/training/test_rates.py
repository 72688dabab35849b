from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.schema.training import LearningRateSchedule, Recipe
from autopart.training.rates import SHAPES, rate_share

RECIPE = Recipe(steps=100, optimizer="sgd")


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rate_grows_in_a_straight_line_and_never_leaves_its_bounds(shape: LearningRateSchedule) -> None:
    recipe = dataclasses.replace(RECIPE, lr_schedule=shape, lr_warmup=10, lr_floor=0.1)
    shares = [rate_share(recipe, step) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert shares[10] == 1.0
    assert all(0.1 <= share <= 1.0 for share in shares[10:])
    assert shares[10:] == sorted(shares[10:], reverse=True)


def test_cosine_is_at_its_half_in_the_middle_and_constant_stays() -> None:
    cosine = dataclasses.replace(RECIPE, lr_schedule="cosine")
    assert rate_share(cosine, 51) == pytest.approx(0.5)
    assert rate_share(cosine, 100) < 0.001
    assert {rate_share(RECIPE, step) for step in range(1, 101)} == {1.0}


@given(st.integers(1, 50), st.integers(0, 60), st.sampled_from(sorted(SHAPES)))
def test_every_step_has_a_rate(steps: int, warmup: int, shape: LearningRateSchedule) -> None:
    recipe = Recipe(steps=steps, optimizer="sgd", lr_warmup=warmup, lr_schedule=shape)
    assert all(0 <= rate_share(recipe, step) <= 1 for step in range(1, steps + 1))


@pytest.mark.parametrize(
    "words",
    [{"steps": 0}, {"optimizer": "none"}, {"clip": 0.0}, {"learning_rate": -1.0}, {"lr_floor": 2.0},
     {"checkpoint_every": 0}, {"lr_warmup": -1}],
)  # fmt: skip
def test_a_recipe_that_makes_no_sense_is_refused(words: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(RECIPE, **words)  # type: ignore[arg-type]
