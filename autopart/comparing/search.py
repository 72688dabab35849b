"""Sets of rented devices that are worth planning for a model."""

from __future__ import annotations

from typing import Any

from autopart import modelsource, profiling
from autopart.comparing.budgets import read_budget, sets_within, worth_planning
from autopart.modelsource import Source
from autopart.progress import Progress
from autopart.schema.generation import WeightFormat
from autopart.schema.graph import Graph
from autopart.tracecache import traced
from autopart.verbs import profile_source

__all__ = ["searched"]


def searched(
    source: Source, catalogue: str, most: int, progress: Progress, words: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sets of the catalogue that are worth a plan, and what was left out."""
    budget = read_budget(catalogue)
    kinds = {kind.name: kind for kind in profiling.kinds()}
    sets = sets_within(budget, tuple(kinds.values()))
    names = sorted({name for each in sets for name, _ in each.counts})
    mode = words.get("mode", "infer")
    generates = mode == "generate"
    mode = "infer" if generates else mode
    sized = source if generates else modelsource.with_batch(source, words["batch"])
    profile = profile_source(
        sized, devices=",".join(f"1x{name}" for name in names), mode=mode,
        optimizer=words.get("optimizer"), progress=progress,
    )
    speeds = {
        row.kind: profile.batch_size / (sum(row.forward_seconds) + sum(row.backward_seconds)) for row in profile.kinds
    }
    needed = _needed_bytes(traced(sized, training=mode == "train").graph, words.get("weights", "as-built"))
    chosen = worth_planning(
        sets, speeds.__getitem__, lambda name: kinds[name].memory_bytes.value, needed, most
    )
    left_out = len(sets) - len(chosen)
    remark = (
        f"{left_out} of the {len(sets)} sets of one or two kinds within {budget:g} $/h were not planned: too little "
        "memory for the weights, or less speed in all, and per dollar, than those shown (--sets N shows more)"
    )
    return tuple(each.name for each in chosen), (remark,) if left_out else ()


def _needed_bytes(graph: Graph, weights: WeightFormat) -> float:
    """What no set can do without: the weights as they are kept, quantised all of them at their least."""
    bits: dict[WeightFormat, float] = {"int8": 8, "int4": 4}
    if weights not in bits:
        return graph.parameter_bytes
    return sum(weight.num_elements for weight in graph.weights) * bits[weights] / 8
