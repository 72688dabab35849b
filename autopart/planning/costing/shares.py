"""A graph as one of several devices has it that share every layer of a stage (tensor parallelism).

Of the weights each device has a part, but for those that a run keeps whole (``Weight.most_devices``).  A layer's part
is the share of its weights that are divided: so much of its work is divided too, and the rest every device does.  Of
what a layer saves for backward a divided one keeps (10 + 24 / devices) / 34 (Korthikanti et al. 2022, equation 2,
without the scores).
"""

from __future__ import annotations

from dataclasses import replace

from autopart.schema.graph import Graph, Layer, Weight

__all__ = ["divided_part", "is_divided", "part_unknown", "shared_graph"]

REPLICATED, SHARDED = 10, 24
"""of the 34 bytes per token and hidden unit that a transformer layer saves, those on every device and those shared"""


def is_divided(weight: Weight, num_devices: int) -> bool:
    """Whether so many devices divide a weight; one of which that is not known is taken to be divided."""
    return num_devices > 1 and (weight.most_devices is None or weight.most_devices >= num_devices)


def part_unknown(graph: Graph) -> bool:
    """Whether it is not known of the weights which are divided."""
    return any(weight.most_devices is None for weight in graph.weights)


def divided_part(graph: Graph, layer: Layer, num_devices: int) -> float:
    """Share of a layer's weights, by bytes, that so many devices divide."""
    sizes = [(graph.weights[index], graph.weights[index].bytes) for index in set(layer.weights)]
    total = sum(size for _, size in sizes)
    return sum(size for weight, size in sizes if is_divided(weight, num_devices)) / total if total else 0.0


def shared_graph(graph: Graph, num_devices: int) -> Graph:
    """The graph with the bytes of weights and of what is saved that one of so many devices has; rounded up."""
    if num_devices == 1:
        return graph
    return replace(
        graph, weights=tuple(_part(weight, num_devices) for weight in graph.weights),
        layers=tuple(
            replace(layer, saved_bytes=_saved_bytes(graph, layer, num_devices)) if layer.weights else layer
            for layer in graph.layers
        ),
    )  # fmt: skip


def _part(weight: Weight, num_devices: int) -> Weight:
    if not is_divided(weight, num_devices):
        return weight
    return replace(
        weight, bytes=-(-weight.bytes // num_devices), num_elements=-(-weight.num_elements // num_devices)
    )


def _saved_bytes(graph: Graph, layer: Layer, num_devices: int) -> int:
    spared = SHARDED * (num_devices - 1) / ((REPLICATED + SHARDED) * num_devices)
    return layer.saved_bytes - int(layer.saved_bytes * spared * divided_part(graph, layer, num_devices))
