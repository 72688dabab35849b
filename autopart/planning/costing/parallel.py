"""Several devices as one stage: tensor and data parallel groups of one kind, and recomputing in the backward.

A stage of width ``tensor * data`` cuts its micro-batch into ``data`` parts of whole samples, and of every layer those
weights that can be divided over ``tensor`` devices (Shoeybi et al. 2019, section 3).  What that costs:

* collectives: an all-reduce of n bytes over p devices takes ``2 (p - 1) (latency + n / (p bandwidth))`` in a ring
  (Patarasuk and Yuan 2009).  A layer pays one of its output per pair of matrix products (at least one), in forward and
  again in backward; the replicas exchange the weights' gradients once per step.
* memory: weights and what is saved as in ``shares``, and everything of a micro-batch over ``data``.
* recompute keeps the inputs of layers only, and runs each layer's forward again before its backward (``rerunning``).

Boundaries are charged as one message over one link, whatever the widths at its ends: never less than it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from autopart.planning.costing.memory import StageFacts, stage_facts
from autopart.planning.costing.remembering import per_graph
from autopart.planning.costing.shares import divided_part, shared_graph
from autopart.planning.costing.tables import facts_table
from autopart.schema.device import Device, Link
from autopart.schema.graph import Graph, Layer
from autopart.schema.job import Job
from autopart.schema.problem import Candidate

__all__ = [
    "ALONE", "Times", "Way", "all_reduce_seconds", "gradient_seconds", "layer_times", "usual_way", "usual_ways",
    "way_facts", "way_tables", "ways",
]  # fmt: skip

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])

MATRIX_FAMILIES = ("gemm", "convolution")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a stage is run."""

    tensor: int = 1
    data: int = 1
    recompute: bool = False

    @property
    def width(self) -> int:
        """Devices it takes."""
        return self.tensor * self.data


ALONE = Way()

FEW_BOUNDARIES = 64
"""tables over so many are small enough to be remembered"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of every layer, for one micro-batch; the optimizer's once per step."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    optimizer: tuple[float, ...]


def ways(job: Job, batch_size: int, num_devices: int) -> tuple[Way, ...]:
    """The ways that a job allows on a group of so many devices; replicas divide the micro-batch."""
    recomputes = {"never": (False,), "always": (True,), "auto": (False, True)}[job.recompute]
    return tuple(
        Way(tensor=tensor, data=data, recompute=recompute)
        for tensor, data, recompute in product(_powers(job.tensor_parallel), _powers(job.data_parallel), recomputes)
        if tensor * data <= num_devices and batch_size % data == 0
    )


def usual_way(job: Job) -> Way:
    """How a simpler method runs a stage, on one device: as the job insists on."""
    return Way(recompute=job.recompute == "always")


def usual_ways(job: Job, num_stages: int) -> tuple[Way, ...]:
    """The same of all stages of a layout; () if there is nothing special about them."""
    return () if usual_way(job) == ALONE else (usual_way(job),) * num_stages


def _powers(most: int) -> tuple[int, ...]:
    return tuple(2**exponent for exponent in range(most.bit_length()))


def all_reduce_seconds(link: Link, num_devices: int, num_bytes: Amount) -> Amount:
    """A ring all-reduce."""
    each = num_bytes / num_devices / link.bandwidth_bytes_per_second
    return 2 * (num_devices - 1) * (link.latency_seconds + each)


def layer_times(candidate: Candidate, device: Device, link: Link | None, way: Way, *, training: bool) -> Times:
    """The time of every layer on a group of devices like ``device``, joined by ``link``."""
    kind = candidate.profile.kind(device.kind)
    forward, backward, optimizer = [], [], []
    outputs = _output_bytes(candidate.graph) if way.tensor > 1 else ()
    for index, layer in enumerate(candidate.graph.layers):
        part, collective = divided_part(candidate.graph, layer, way.tensor) if way.tensor > 1 else 0.0, 0.0
        if part:
            assert link is not None, "several devices need a link"
            collective = _num_pairs(layer) * all_reduce_seconds(link, way.tensor, outputs[index] / way.data)
        share = (1 - part + part / way.tensor) / device.speed  # of the layer's work that each device does
        once = kind.forward_seconds[index] * share / way.data + collective
        twice = kind.backward_seconds[index] * share / way.data + collective
        forward.append(once)
        backward.append((twice + (once if way.recompute and layer.reruns else 0.0)) if training else 0.0)
        optimizer.append(kind.optimizer_seconds[index] * share if training else 0.0)
    return Times(forward=tuple(forward), backward=tuple(backward), optimizer=tuple(optimizer))


def _num_pairs(layer: Layer) -> int:
    """Pairs of matrix products, the first cut by columns and the second by rows, each with one all-reduce."""
    num_products = sum(work.num_calls for work in layer.work if work.family in MATRIX_FAMILIES)
    return max(1, (num_products + 1) // 2)


def _output_bytes(graph: Graph) -> tuple[int, ...]:
    """The largest value that every layer produces."""
    largest = [0] * len(graph.layers)
    for value in graph.values:
        if value.producer >= 0:
            largest[value.producer] = max(largest[value.producer], value.bytes)
    return tuple(largest)


def gradient_seconds(link: Link | None, way: Way, trainable_bytes: float) -> float:
    """What the replicas of a stage spend on their gradients, once per step; the bytes are those of one device."""
    if way.data == 1:
        return 0.0
    assert link is not None, "several devices need a link"
    return all_reduce_seconds(link, way.data, trainable_bytes)


def way_facts(graph: Graph, first: int, last: int, way: Way) -> StageFacts:
    """What one device of a stage's group holds of layers first .. last - 1."""
    return _per_device(stage_facts(shared_graph(graph, way.tensor), first, last, recompute=way.recompute), way)


def way_tables(graph: Graph, boundaries: tuple[int, ...], offered: Sequence[Way]) -> tuple[StageFacts, ...]:
    """The same for every way, as arrays over the boundaries; see ``tables.facts_table``."""
    find = _known_table if len(boundaries) <= FEW_BOUNDARIES else _table
    kinds = sorted({(way.tensor, way.recompute) for way in offered})
    tables = {(tensor, recompute): find(graph, boundaries, tensor, recompute) for tensor, recompute in kinds}
    return tuple(_per_device(tables[way.tensor, way.recompute], way) for way in offered)


def _table(graph: Graph, boundaries: tuple[int, ...], tensor: int, recompute: bool) -> StageFacts:
    return facts_table(shared_graph(graph, tensor), boundaries, recompute=recompute)


_known_table = per_graph(_table)


def _per_device(facts: StageFacts, way: Way) -> StageFacts:
    """Of a stage whose layers are shared already what one replica has; for integers and arrays alike, rounded up."""
    if way.width == 1:
        return facts

    def per_sample(num_bytes: object) -> object:
        return -(-np.asarray(num_bytes) // way.data)

    # a weight's new gradient, part of what a layer's backward needs, is no smaller for fewer samples
    new_gradient = np.asarray(facts.largest_trainable) if way.data > 1 else 0
    later_pass = np.asarray(per_sample(facts.later_pass)) + new_gradient
    return replace(
        facts,
        saved=per_sample(facts.saved), alive=per_sample(facts.alive), later_pass=later_pass,
        first_pass=np.asarray(facts.trainable) + later_pass,
        loss_saved=per_sample(facts.loss_saved), loss_backward=per_sample(facts.loss_backward),
        cache_per_token=-(-np.asarray(facts.cache_per_token) // way.tensor),
        kept=per_sample(facts.kept), incoming=per_sample(facts.incoming),
        incoming_gradient=per_sample(facts.incoming_gradient), outgoing=per_sample(facts.outgoing),
        outgoing_gradient=per_sample(facts.outgoing_gradient),
    )
