from __future__ import annotations

import math
from typing import Any

import pulp
import pytest

from autopart.planning.graphs.dagsolve import expression, quiet_pulp, run_solver


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def build(clock: Clock, seconds: float) -> Any:
    """A program whose building takes so long."""
    clock.now += seconds
    with quiet_pulp():
        program = pulp.LpProblem("small", pulp.LpMinimize)
        x = pulp.LpVariable("x", lowBound=0, upBound=9, cat="Integer")
        program.setObjective(expression([x]))
        program.addConstraint(expression([x]) >= 2.5)
    return program


@pytest.mark.parametrize(("seconds", "asked"), [(1.0, True), (3.9, True), (5.0, False), (60.0, False)])
def test_building_counts_twice_for_it_is_handed_over_as_well(seconds: float, asked: bool) -> None:
    clock = Clock()
    _, answer = run_solver(
        lambda: build(clock, seconds), solver="auto", gap=1e-3, time_limit_seconds=8.0, clock=clock
    )
    assert answer.outcome == ("optimal" if asked else "unknown")
    assert answer.bound == (3.0 if asked else -math.inf)
    assert clock.now == seconds, "built once"
