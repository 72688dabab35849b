"""Whether the solvers of the integer programs work here."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import pulp

from autopart.planning.solving.portfolio import race

__all__ = ["SolverState", "solvers_here"]

PROBE_SECONDS = 10.0
_PACKAGES = {"highs": "highspy", "cbc": "pulp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverState:
    """A solver, and what it made of a tiny program."""

    name: str
    package: str
    """which brings it"""
    version: str
    """of the package; empty if it is not installed"""
    answer: str
    """the solver's word: optimal if it works"""


def solvers_here() -> tuple[SolverState, ...]:
    """Every solver that plans may use, each asked to solve a program of one variable in its own process."""
    return tuple(
        SolverState(name=name, package=package, version=_version(package), answer=_asked(name))
        for name, package in _PACKAGES.items()
    )


def _asked(name: str) -> str:
    problem = pulp.LpProblem("probe", pulp.LpMinimize)
    chosen = pulp.LpVariable("chosen", cat="Binary")
    problem += 2 * chosen
    problem += chosen >= 0.5, "at_least"
    try:
        found, _ = race(
            problem, "highs" if name == "highs" else "cbc", time_limit_seconds=PROBE_SECONDS, gap=0.0,
            accept=lambda answer: answer.word == "optimal",
        )
    except OSError as error:
        return f"cannot be started: {error.strerror}"
    return "no answer" if found is None else found.word


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
