"""Improve a kind's times by what runs of plans took on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autopart.pastruns import StageRun, run_as
from autopart.schema.graph import Graph
from autopart.schema.profile import KindProfile

__all__ = ["learned"]

LARGEST_FACTORS = (1.25, 1.5, 2.0)
"""by how much the medians of one, two, three and more runs may change a time: a run may have been disturbed in a way
that nothing showed"""


def learned(row: KindProfile, graph: Graph, runs: Sequence[StageRun]) -> KindProfile:
    """The row with the layers of stages that ran scaled, so that they add up to what the stages took, within bounds.

    Args:
        row: of one kind.
        graph: whose layers it is of.
        runs: stages of the same model and micro-batch size; of several with the same layer the last counts.
    """
    numbers = {layer.name: index for index, layer in enumerate(graph.layers)}
    forward, backward = list(row.forward_seconds), list(row.backward_seconds)
    done: set[int] = set()
    used: list[StageRun] = []
    factors: list[tuple[float, float]] = []
    for run in reversed(runs):
        own = [numbers[name] for name in run.layers if name in numbers]
        if run.kind != run_as(row.kind, row.dtype) or len(own) != len(run.layers) or done >= set(own):
            continue
        ahead = _ratio(run.forward_seconds, sum(row.forward_seconds[index] for index in own))
        back = _ratio(run.backward_seconds, sum(row.backward_seconds[index] for index in own))
        for index in set(own) - done:
            forward[index] *= _bounded(ahead, run.num_runs)
            backward[index] *= _bounded(back, run.num_runs)
        wanted = (ahead, back) if run.backward_seconds else (ahead,)
        factors += [(ratio, _bounded(ratio, run.num_runs)) for ratio in wanted]
        used.append(run)
        done.update(own)
    if not done:
        return row
    text = _said(len(done), len(numbers), min(run.num_runs for run in used), factors)
    return replace(
        row, basis=f"{row.basis}; {text}", forward_seconds=tuple(forward), backward_seconds=tuple(backward)
    )


def _ratio(measured: float, predicted: float) -> float:
    return measured / predicted if measured > 0 and predicted > 0 else 1.0


def _bounded(ratio: float, num_runs: int) -> float:
    most = LARGEST_FACTORS[min(num_runs, len(LARGEST_FACTORS)) - 1]
    return min(max(ratio, 1 / most), most)


def _said(num_done: int, num_layers: int, fewest: int, factors: Sequence[tuple[float, float]]) -> str:
    """How many layers, by how much, on how many runs; and where the bounds held a factor back."""
    taken = [bounded for _, bounded in factors]
    text = (
        f"{num_done} of {num_layers} layers scaled to what runs took (x{min(taken):.2f} to x{max(taken):.2f}, "
        f"median of {fewest} run{'s' * (fewest > 1)})"
    )
    held = [wanted for wanted, bounded in factors if wanted != bounded]
    if not held:
        return text
    return f"{text}; held back, since they took x{min(held):.2f} to x{max(held):.2f}: run again to have more believed"
