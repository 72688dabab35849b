"""A model on paper, and its times, in words."""

from __future__ import annotations

from autopart.reporting.tables import facts, flop, table
from autopart.schema.graph import Graph
from autopart.schema.profile import Profile
from autopart.units import format_bytes, format_count, format_seconds

__all__ = ["profile_text", "trace_text"]


def trace_text(graph: Graph) -> str:
    """The layers of a model with their parameters, FLOPs and bytes, and the sums."""
    rows = []
    seen: set[int] = set()
    for index, layer in enumerate(graph.layers):
        own = [graph.weights[each] for each in layer.weights]
        tied = " (tied)" if seen.intersection(layer.weights) else ""
        seen.update(layer.weights)
        rows.append((
            str(index),
            layer.name,
            format_count(sum(weight.num_elements for weight in own if not weight.is_buffer)) + tied,
            format_bytes(sum(weight.bytes for weight in own)),
            flop(layer.flops),
            format_bytes(layer.peak_bytes),
            format_bytes(layer.saved_bytes),
            _cut_bytes(graph, index),
        ))
    headers = ("layer", "name", "parameters", "weights", "FLOPs", "working", "saved", "cut before")
    return f"{_summary(graph)}\n\n{table(headers, rows, words=(0, 1))}\n"


def profile_text(profile: Profile, graph: Graph) -> str:
    """Times of every layer on every kind of device, and their sums."""
    headers = ["layer", "name"]
    columns: list[tuple[float, ...]] = []
    for kind in profile.kinds:
        headers.append(f"{kind.kind} forward")
        columns.append(kind.forward_seconds)
        if profile.training:
            headers += [f"{kind.kind} backward", f"{kind.kind} optimizer"]
            columns += [kind.backward_seconds, kind.optimizer_seconds]
    rows = [
        (str(index), layer.name, *(format_seconds(column[index]) for column in columns))
        for index, layer in enumerate(graph.layers)
    ]
    rows.append(("", "sum", *(format_seconds(sum(column)) for column in columns)))
    bases = facts([(kind.kind, f"{kind.origin}: {kind.basis}") for kind in profile.kinds])
    head = f"{graph.model}, times of one micro-batch of {profile.batch_size}"
    return f"{head}\n{bases}\n\n{table(headers, rows, words=(0, 1))}\n"


def _summary(graph: Graph) -> str:
    return (
        f"{graph.model}: {format_count(graph.num_parameters)} parameters ({format_bytes(graph.parameter_bytes)} with "
        f"buffers) in {len(graph.layers)} layers, {flop(graph.flops)} FLOPs forward for a batch of "
        f"{graph.batch_size}, {len(graph.legal_cuts)} places to cut"
    )


def _cut_bytes(graph: Graph, boundary: int) -> str:
    if boundary not in graph.legal_cuts:
        return ""
    return format_bytes(sum(value.bytes for value in graph.crossing(boundary)))
