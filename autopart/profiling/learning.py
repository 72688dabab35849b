"""Improve a kind's times by what runs of plans took on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopart.pastruns import StageRun
from autopart.schema.graph import Graph
from autopart.schema.profile import KindProfile

__all__ = ["learned"]

LARGEST_FACTOR = 2.0
"""a run that was off by more was disturbed, or is of something else"""


def learned(row: KindProfile, graph: Graph, runs: Sequence[StageRun]) -> KindProfile:
    """The row with the layers of stages that ran scaled, so that they add up to what the stages took.

    Args:
        row: of one kind.
        graph: whose layers it is of.
        runs: stages of the same model and micro-batch size, the latest last; of several with the same layer the latest
            counts.
    """
    numbers = {layer.name: index for index, layer in enumerate(graph.layers)}
    forward, backward = list(row.forward_seconds), list(row.backward_seconds)
    done: set[int] = set()
    ratios = []
    for run in reversed(runs):
        own = [numbers[name] for name in run.layers if name in numbers]
        if run.kind != row.kind or len(own) != len(run.layers):
            continue
        ahead = _factor(run.forward_seconds, sum(row.forward_seconds[index] for index in own))
        back = _factor(run.backward_seconds, sum(row.backward_seconds[index] for index in own))
        for index in set(own) - done:
            forward[index] *= ahead
            backward[index] *= back
        ratios += [] if done >= set(own) else [ahead, *([back] if run.backward_seconds else [])]
        done.update(own)
    if not done:
        return row
    text = f"{len(done)} of {len(numbers)} layers scaled to what runs took (x{min(ratios):.2f} to x{max(ratios):.2f})"
    return replace(
        row, basis=f"{row.basis}; {text}", forward_seconds=tuple(forward), backward_seconds=tuple(backward)
    )


def _factor(measured: float, predicted: float) -> float:
    if measured <= 0 or predicted <= 0:
        return 1.0
    return min(max(measured / predicted, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
