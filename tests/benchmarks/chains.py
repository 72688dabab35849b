"""Chains to plan for: transformers by arithmetic (nothing measured), on catalogue-like devices.

Every layer is an embedding, an attention, an MLP or a head; times are FLOPs over half the kind's dense 16-bit peak,
and never less than reading the weights once.  Memory is of mixed-precision training by torch: 2-byte weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopart.schema.device import Cluster, Device, Link
from autopart.schema.graph import Graph, Layer, Value, Weight
from autopart.schema.problem import Candidate
from autopart.schema.profile import KindProfile, Profile

__all__ = ["KINDS", "Shape", "cluster_of", "jittered_chain", "transformer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A kind in figures: dense 16-bit FLOP/s, bytes/s, bytes, dollars per hour."""

    flops_per_second: float
    bytes_per_second: float
    memory_bytes: int
    rent_usd_per_hour: float


KINDS: dict[str, Speed] = {
    "h100": Speed(flops_per_second=989e12, bytes_per_second=3.35e12, memory_bytes=79 * 10**9, rent_usd_per_hour=2.7),
    "a100": Speed(flops_per_second=312e12, bytes_per_second=2.0e12, memory_bytes=79 * 10**9, rent_usd_per_hour=1.4),
    "a100-40": Speed(flops_per_second=312e12, bytes_per_second=1.5e12, memory_bytes=39 * 10**9, rent_usd_per_hour=1.2),
    "a10": Speed(flops_per_second=125e12, bytes_per_second=0.6e12, memory_bytes=23 * 10**9, rent_usd_per_hour=0.6),
    "l4": Speed(flops_per_second=121e12, bytes_per_second=0.3e12, memory_bytes=23 * 10**9, rent_usd_per_hour=0.5),
    "v100": Speed(flops_per_second=125e12, bytes_per_second=0.9e12, memory_bytes=31 * 10**9, rent_usd_per_hour=0.5),
    "t4": Speed(flops_per_second=65e12, bytes_per_second=0.3e12, memory_bytes=15 * 10**9, rent_usd_per_hour=0.2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder-only transformer and its micro-batch; ``whole_blocks`` makes one layer of an attention and its MLP."""

    num_blocks: int
    hidden: int
    vocabulary: int = 32000
    sequence: int = 2048
    num_sequences: int = 1
    whole_blocks: bool = False


def transformer(shape: Shape, kinds: tuple[str, ...], num_microbatches: int, *, training: bool) -> Candidate:
    """The transformer at one micro-batch size."""
    tokens, hidden = shape.sequence * shape.num_sequences, shape.hidden
    table = shape.vocabulary * hidden
    attention = (4 * hidden**2, 2 * tokens * 4 * hidden**2 + 4 * tokens * shape.sequence * hidden, 11 * tokens * hidden)
    mlp = (8 * hidden**2, 2 * tokens * 8 * hidden**2, 19 * tokens * hidden)
    block = [tuple(map(sum, zip(attention, mlp, strict=True)))] if shape.whole_blocks else [attention, mlp]
    rows = [
        (table, tokens * hidden, 2 * tokens * hidden), *(block * shape.num_blocks),
        (table, 2 * tokens * table, 2 * tokens * hidden),
    ]
    values = [4 * tokens, *[2 * tokens * hidden] * (len(rows) - 1), 2 * tokens * shape.vocabulary]
    return _candidate(rows, values, kinds, num_microbatches, training=training, batch_size=shape.num_sequences)


def jittered_chain(num_layers: int, kinds: tuple[str, ...], num_microbatches: int) -> Candidate:
    """Layers of differing size (a linear congruential generator, the same every time), for inference."""
    state, rows, values = 1, [], [2 * 2**21]
    for _ in range(num_layers):
        state = (state * 1103515245 + 12345) % 2**31
        factor = 0.5 + state / 2**31
        rows.append((int(12e6 * factor), int(50e9 * factor), 0))
        values.append(int(2 * 2**20 * (0.75 + factor / 4)))
    return _candidate(rows, values, kinds, num_microbatches, training=False)


def _candidate(
    rows: Sequence[tuple[int, ...]], values: Sequence[int], kinds: tuple[str, ...], num_microbatches: int, *,
    training: bool, batch_size: int = 1,
) -> Candidate:
    graph = Graph(
        model="chain", fingerprint="chain", training=training, batch_size=batch_size,
        layers=tuple(
            Layer(name=f"l{k}", weights=(k,), work=(), saved_bytes=saved if training else 0,
                  peak_bytes=values[k] + values[k + 1], signature=str((size, flops, saved)))
            for k, (size, flops, saved) in enumerate(rows)
        ),
        weights=tuple(
            Weight(name=f"w{k}", num_elements=row[0], bytes=2 * row[0], dtype="bfloat16", is_buffer=False,
                   trainable=True)
            for k, row in enumerate(rows)
        ),
        values=tuple(
            Value(name=f"v{k}", producer=k - 1, consumers=(k,), bytes=size, shape=(size // 2,), dtype="bfloat16",
                  differentiable=k > 0)
            for k, size in enumerate(values)
        ),
        legal_cuts=tuple(range(1, len(rows))),
    )
    return Candidate(num_microbatches=num_microbatches, graph=graph, profile=_profile(graph, rows, kinds))


def _profile(graph: Graph, rows: Sequence[tuple[int, ...]], kinds: tuple[str, ...]) -> Profile:
    def kind_profile(name: str) -> KindProfile:
        speed = KINDS[name]
        forward = tuple(
            max(flops / (0.5 * speed.flops_per_second), 2 * size / speed.bytes_per_second) for size, flops, _ in rows
        )
        factor = 1.0 if graph.training else 0.0
        return KindProfile(
            kind=name, origin="estimated", basis="arithmetic", forward_seconds=forward,
            backward_seconds=tuple(2 * factor * time for time in forward),
            optimizer_seconds=tuple(factor * 16 * row[0] / speed.bytes_per_second for row in rows),
            spread=(0.0,) * len(rows),
        )

    return Profile(
        fingerprint=graph.fingerprint, training=graph.training, batch_size=graph.batch_size,
        kinds=tuple(kind_profile(name) for name in kinds),
    )


def cluster_of(counts: dict[str, int], *, per_node: int | None = None) -> Cluster:
    """Devices of each kind: all in one node with 10 GB/s between any two, or in nodes of ``per_node`` with 100 GB/s."""
    def node(kind: str, number: int) -> str:
        return "here" if per_node is None else f"{kind}-{number // per_node}"

    def link(ends: tuple[str, str], rate: float) -> Link:
        return Link(level="node", ends=ends, latency_seconds=1e-5, bandwidth_bytes_per_second=rate, origin="assumed",
                    source="arithmetic")

    devices = tuple(
        Device(name=f"{kind}:{number}", kind=kind, node=node(kind, number), memory_bytes=KINDS[kind].memory_bytes,
               memory_origin="data sheet", backend="absent", rent_usd_per_hour=KINDS[kind].rent_usd_per_hour)
        for kind, count in counts.items() for number in range(count)
    )
    nodes = dict.fromkeys(device.node for device in devices) if per_node else {}
    return Cluster(devices=devices, links=(*(link((name, name), 1e11) for name in nodes), link(("*", "*"), 1e10)))
