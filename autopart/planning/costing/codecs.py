"""What a value costs on its way over a link, and the codec that makes it least, where the job allows codecs.

    seconds = latency + wire bytes / bandwidth + start + plain bytes / rate

with the start and rate of encoding and decoding together.  They are those of the cluster's slowest sort of device:
processors measured (one thread of a server processor, torch 2.13, float32, 2026-11-22: fp16 0.48, bf16 0.56, int8 0.30,
topk 0.21 GB/s), accelerators assumed (as many passes over memory at 300 GB/s, and 10 us for each of their kernels).
"""

from __future__ import annotations

from dataclasses import dataclass

from autopart.planning.costing.kvcache import ELEMENT_BYTES
from autopart.schema.codec import CodecName, is_compressible, wire_bytes
from autopart.schema.device import Cluster, Device, Link
from autopart.schema.graph import Graph, Value
from autopart.schema.job import Job

__all__ = ["Codec", "Sent", "codecs_of", "plain", "sent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A codec that may be used, with what encoding and decoding take together."""

    name: CodecName
    start_seconds: float = 0.0
    bytes_per_second: float = float("inf")
    """of the value before encoding"""


PROCESSOR = (
    Codec(name="none"), Codec(name="fp16", start_seconds=1e-5, bytes_per_second=0.48e9),
    Codec(name="bf16", start_seconds=1e-5, bytes_per_second=0.56e9),
    Codec(name="int8", start_seconds=5e-5, bytes_per_second=0.3e9),
    Codec(name="topk", start_seconds=1e-4, bytes_per_second=0.21e9),
)
ACCELERATOR = (
    Codec(name="none"), Codec(name="fp16", start_seconds=2e-5, bytes_per_second=100e9),
    Codec(name="bf16", start_seconds=2e-5, bytes_per_second=100e9),
    Codec(name="int8", start_seconds=8e-5, bytes_per_second=40e9),
    Codec(name="topk", start_seconds=1e-4, bytes_per_second=10e9),
)
AUTOMATIC: tuple[CodecName, ...] = ("none", "fp16", "int8")
"""what ``--compress auto`` chooses from: topk may spoil results, and bf16 sends no less than fp16"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One value over one link, in one direction."""

    codec: Codec
    num_bytes: int
    seconds: float


def codecs_of(job: Job, cluster: Cluster) -> tuple[Codec, ...]:
    """The codecs that a job allows on a cluster; values that its codec is not meant for travel as they are."""
    offered = PROCESSOR if any(_is_processor(device) for device in cluster.devices) else ACCELERATOR
    names = AUTOMATIC if job.compress == "auto" else (job.compress,)
    return tuple(codec for codec in offered if codec.name in names)


def plain(codecs: tuple[Codec, ...]) -> bool:
    """Whether everything travels as it is."""
    return all(codec.name == "none" for codec in codecs)


def _is_processor(device: Device) -> bool:
    return device.backend == "cpu" or device.kind.startswith("cpu")


def sent(value: Value, graph: Graph, link: Link, codecs: tuple[Codec, ...]) -> Sent:
    """A value by the codec that is quickest over the link, the first of several; its gradient travels like it."""
    meant = [codec for codec in codecs if codec.name == "none" or is_compressible(value, graph, codec.name)]
    ways = (_by(codec, value, link) for codec in meant or [PROCESSOR[0]])
    return min(ways, key=lambda way: way.seconds)


def _by(codec: Codec, value: Value, link: Link) -> Sent:
    if codec.name == "none":
        return Sent(codec=codec, num_bytes=value.bytes, seconds=link.seconds(value.bytes))
    num_bytes = wire_bytes(codec.name, value.shape, ELEMENT_BYTES[value.dtype])
    seconds = link.seconds(num_bytes) + codec.start_seconds + value.bytes / codec.bytes_per_second
    return Sent(codec=codec, num_bytes=num_bytes, seconds=seconds)
