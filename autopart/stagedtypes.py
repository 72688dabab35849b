"""Stages computed in another type than the model's, where a kind has no units for that: which type, what it costs.

A stage in float16 computes so what the model does in bfloat16; one in float32 what it does in either half type.  What
crosses a cut stays in the model's type, and in training so do weights and their gradients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

from autopart.schema.device import Kind
from autopart.schema.graph import Graph, Layer, Value, Weight, Work

__all__ = ["REPLACED", "StageDtype", "held_graph", "stage_dtype", "timed_graph"]

StageDtype = str

REPLACED: Mapping[StageDtype, tuple[str, ...]] = {"float16": ("bfloat16",), "float32": ("bfloat16", "float16")}
"""type of a stage → types of the model that it stands in for"""

HALF_BYTES, FULL_BYTES = 2, 4


def stage_dtype(graph: Graph, kind: Kind) -> StageDtype:
    """What layers on a kind are best computed in: "" (the model's own types) if it has units for those.

    Float16 instead of bfloat16 in inference, if the kind is quicker in it than in float32; else float32: training in
    float16 takes a scaled loss, or small gradients vanish (Micikevicius et al. 2018, section 3.2).
    """
    peaks = {peak.dtype: peak.flops_per_second.value for peak in kind.peaks}
    used = {work.dtype for layer in graph.layers for work in layer.work}
    missing = used.intersection(REPLACED["float32"]) - set(peaks)
    if not missing:
        return ""
    helps = peaks.get("float16", 0.0) > peaks.get("float32", 0.0)
    return "float16" if missing == {"bfloat16"} and helps and not graph.training else "float32"


def timed_graph(graph: Graph, dtype: StageDtype) -> Graph:
    """The graph with the work that its layers do in that type; in training they cast their weights in every pass."""
    if not dtype:
        return graph
    return replace(graph, layers=tuple(
        replace(layer, work=tuple(_work(work, dtype) for work in layer.work) + _casts(graph, layer, dtype))
        for layer in graph.layers
    ))  # fmt: skip


def held_graph(graph: Graph, dtype: StageDtype) -> Graph:
    """The graph with the bytes that a device holds of it in that type: hardly ever too few.

    What crosses is of the model's type; what leaves a stage is there in both while it is cast, and what enters it is
    the layers' own copy beside its receive buffer.  Of what a layer saves and needs the types are not known, so in
    float32 all of it grows.  In training the weights stay as they are, and a copy of each stands beside it as a buffer;
    what enters a stage is saved as a copy, whoever saves it.
    """
    if not dtype:
        return graph
    wider, (weights, beside) = _wider(dtype), _weights_with_copies(graph, dtype)
    cast = replace(
        graph, weights=weights,
        layers=tuple(
            replace(
                layer, weights=(*layer.weights, *(beside[index] for index in layer.weights if index in beside)),
                saved_bytes=wider * layer.saved_bytes, peak_bytes=wider * layer.peak_bytes,
                backward_bytes=wider * layer.backward_bytes, first_backward_bytes=wider * layer.first_backward_bytes,
            )
            for layer in graph.layers
        ),
    )  # fmt: skip
    if not graph.training:
        return _beside_casts(graph, cast, dtype)
    return replace(cast, values=tuple(
        _saved_apart(value) if value.dtype in REPLACED[dtype] else value for value in graph.values
    ))  # fmt: skip


def _saved_apart(value: Value) -> Value:
    """In training a float32 copy, so that the tensor that crosses a cut is none that a layer saves.

    An input is held as both.  In the middle of the model gradients, which cross in the model's type and are counted as
    wide, make up for the tensor itself.
    """
    wider = 2 if value.producer >= 0 else 3
    return replace(value, saved_by=None, bytes=wider * value.bytes, dtype="float32")


def _beside_casts(graph: Graph, cast: Graph, dtype: StageDtype) -> Graph:
    """In inference the second graph with what of its layers' values is beside those of the model's type, that cross.

    Copies of values that pass by a layer, as far as they are wider.  And a layer's peak is at least what is there when
    its stage ends with it: what leaves in both types, but for what passes by, which is counted beside it.
    """
    wider, leaving = _wider(dtype), _leaving_bytes(graph, dtype)
    made, passing = [0] * len(graph.layers), [0] * len(graph.layers)
    for value in graph.values:
        if value.dtype in REPLACED[dtype]:
            made[value.producer] += wider * value.bytes if value.producer >= 0 else 0
            for index in set(range(value.producer + 1, value.consumers[-1])).difference(value.consumers):
                passing[index] += (wider - 1) * value.bytes
    return replace(cast, layers=tuple(
        replace(layer, peak_bytes=beside + max(layer.peak_bytes, own + out))
        for layer, own, out, beside in zip(cast.layers, made, leaving, passing, strict=True)
    ))  # fmt: skip


def _leaving_bytes(graph: Graph, dtype: StageDtype) -> tuple[int, ...]:
    """Of values that are cast, what leaves every layer if a stage may end with it, else 0."""
    changes = [0] * (len(graph.layers) + 2)
    for value in graph.values:
        if value.dtype in REPLACED[dtype]:
            changes[value.producer + 1] += value.bytes
            changes[value.consumers[-1] + 1] -= value.bytes
    ends = {*graph.legal_cuts, len(graph.layers)}
    crossing = enumerate(accumulate(changes[:-1]))
    return tuple(num_bytes if place in ends else 0 for place, num_bytes in crossing if place)


def _weights_with_copies(graph: Graph, dtype: StageDtype) -> tuple[tuple[Weight, ...], dict[int, int]]:
    """The weights in that type, of those that stay as they are copies after all, and where each one's copy is.

    In training all stay, and a copy is counted with its gradient: autograd takes casts that came first last, so these
    gradients are there until a micro-batch's backward is through.  In inference those of several layers stay, which may
    be in several stages: processes that share a weight hold it in the model's type.
    """
    users = Counter(index for layer in graph.layers for index in set(layer.weights))
    replaced = [index for index, weight in enumerate(graph.weights) if weight.dtype in REPLACED[dtype]]
    made = {
        index: replace(weight, bytes=_wider(dtype) * HALF_BYTES * weight.num_elements, dtype=dtype)
        for index, weight in enumerate(graph.weights) if index in set(replaced)
    }
    stay = [index for index in replaced if graph.training or users[index] > 1]
    copies = (
        replace(
            made[index], name=f"{made[index].name} in {dtype}", is_buffer=True, trainable=False,
            bytes=made[index].bytes * (2 if graph.training and made[index].trainable else 1),
        )
        for index in stay
    )  # fmt: skip
    kept = (weight if index in stay else made.get(index, weight) for index, weight in enumerate(graph.weights))
    return (*kept, *copies), {index: len(graph.weights) + place for place, index in enumerate(stay)}


def _work(work: Work, dtype: StageDtype) -> Work:
    if work.dtype not in REPLACED[dtype]:
        return work
    return replace(work, dtype=dtype, traffic_bytes=_wider(dtype) * work.traffic_bytes)


def _wider(dtype: StageDtype) -> int:
    """How many times the bytes of a half type's number."""
    return FULL_BYTES // HALF_BYTES if dtype == "float32" else 1


def _casts(graph: Graph, layer: Layer, dtype: StageDtype) -> tuple[Work, ...]:
    """One of every weight: read in the model's type, written in the other."""
    if not graph.training:
        return ()  # once, before the first pass
    return tuple(
        Work(
            family="copy", dtype=dtype, num_calls=1, flops=0,
            traffic_bytes=(HALF_BYTES + (FULL_BYTES if dtype == "float32" else HALF_BYTES)) * weight.num_elements,
        )
        for weight in _replaced(graph, layer, dtype)
    )  # fmt: skip


def _replaced(graph: Graph, layer: Layer, dtype: StageDtype) -> tuple[Weight, ...]:
    weights = (graph.weights[index] for index in dict.fromkeys(layer.weights))
    return tuple(weight for weight in weights if weight.dtype in REPLACED[dtype])
