"""The two phases of generating text as graphs: prefill reads a whole prompt, decode makes one token of every request.

Decode is a forward pass over one token of each request in which attention looks at the cache: its products are those
of as many rows as there are requests, so that reading the weights is what takes time.  Mixtures of experts read the
experts that are routed to; quantised weights are read as they are kept and multiplied in the model's data type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autopart.errors import UsageError
from autopart.generating.decoders import Attention, Decoder
from autopart.generating.tokenlaw import TokenLaw
from autopart.schema.generation import Requests, WeightFormat
from autopart.schema.graph import Graph, Layer, Value, Work

__all__ = ["Phases", "WeightShape", "distinct_experts", "mixed"]

BITS: Mapping[WeightFormat, float] = {"int8": 8 + 16 / 128, "int4": 4 + 2 * 16 / 128}
"""per weight: groups of 128 with a scale of 16 bits, four-bit ones with a zero point too (Frantar et al. 2023,
section 4)"""

ELEMENT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShape:
    """A weight that matrix products read; other weights have none."""

    shape: tuple[int, ...]
    """rows out, columns in; of experts their number before it"""
    is_quantised: bool
    """if any are: embeddings, the output head and routers stay as they are built"""


def distinct_experts(num_experts: int, per_token: int, num_tokens: int) -> float:
    """Experts that at least one of the tokens is routed to, on average, if all are as likely.

    >>> distinct_experts(8, 2, 1)
    2.0
    """
    return num_experts * (1 - (1 - per_token / num_experts) ** num_tokens)


class Phases:
    """Graphs of one decoder for the requests that are made of it."""

    def __init__(
        self, law: TokenLaw, decoder: Decoder, requests: Requests, shapes: Mapping[int, WeightShape], name: str
    ) -> None:
        """Takes what tracing and config say, and of every index of a weight that products read its shape."""
        self._law, self._decoder, self._requests, self._shapes = law, decoder, requests, shapes
        self._name = name

    def of(self, requests: Requests) -> Phases:
        """The same decoder's for other requests."""
        return Phases(self._law, self._decoder, requests, self._shapes, self._name)

    def decode(self, num_requests: int) -> Graph:
        """One token of each of so many requests, on average over their answers."""
        requests = self._requests
        context = requests.prompt_tokens + requests.new_tokens // 2
        return self._finished(self._law.at(num_requests), num_requests, context, queries=1)

    def prefill(self) -> Graph:
        """One prompt, with the first token of the answer: only the last position goes through the head."""
        num_tokens = self._requests.prompt_tokens
        graph, single = self._law.at(num_tokens), self._law.at(1)
        layers = tuple(map(self._with_last_position, graph.layers, single.layers))
        ends = len(layers)
        values = tuple(
            short if ends in value.consumers else value
            for value, short in zip(graph.values, single.values, strict=True)
        )
        graph = replace(graph, layers=layers, values=values)
        return self._finished(graph, 1, num_tokens, queries=num_tokens)

    def _with_last_position(self, layer: Layer, single: Layer) -> Layer:
        rows = (self._decoder.vocabulary,)
        heads = [work for work in layer.work if work.family == "gemm" and work.shape[2:3] == rows]
        if not heads:
            return layer
        if sum(work.family == "gemm" for work in layer.work) == len(heads):
            return single
        pairs = zip(layer.work, single.work, strict=True)
        return replace(layer, work=tuple(short if work in heads else work for work, short in pairs))

    def _finished(self, graph: Graph, num_requests: int, keys: int, *, queries: int) -> Graph:
        """With attention, experts and the weights as they are kept."""
        places = self._attention_layers(graph)
        tokens = num_requests * queries
        layers = list(graph.layers)
        for block, (first, last) in enumerate(places):
            for index in range(first, last + 1):
                layers[index] = _without_attention(layers[index])
            dtype = _attending(graph.layers[last])[0].dtype
            work = _attention(self._decoder.attentions[block], num_requests, keys, queries, dtype)
            layers[last] = replace(
                layers[last], work=(*layers[last].work, work),
                cache_bytes_per_token=self._cache_bytes(self._decoder.attentions[block], dtype),
            )
        return replace(
            graph, batch_size=num_requests,
            layers=tuple(_fused(self._with_weights(graph, layer, tokens)) for layer in layers),
            weights=tuple(
                replace(weight, bytes=self._kept_bytes(index, weight.num_elements, weight.bytes))
                for index, weight in enumerate(graph.weights)
            ),
        )  # fmt: skip

    def _attention_layers(self, graph: Graph) -> list[tuple[int, int]]:
        """First and last of the layers that hold each block's attention.

        Raises:
            UsageError: they are not as many as the config says.
        """
        blocks: dict[str, list[int]] = {}
        for index, layer in enumerate(graph.layers):
            if _attending(layer):
                number = next((part for part in layer.name.split(".") if part.isdigit()), layer.name)
                blocks.setdefault(number, []).append(index)
        if len(blocks) != len(self._decoder.attentions):
            raise UsageError(
                f"{self._name}: {len(blocks)} layers attend where the config has {len(self._decoder.attentions)}, so "
                "its cache is not known; use --mode infer"
            )
        return [(indices[0], indices[-1]) for indices in blocks.values()]

    def _cache_bytes(self, attention: Attention, dtype: str) -> int:
        """Of one token, on average over a request at its longest: a window keeps no more than it looks at."""
        context = self._requests.context_tokens
        return -(-attention.cached_elements * ELEMENT_BYTES[dtype] * attention.num_keys(context) // context)

    def _kept_bytes(self, index: int, num_elements: int, num_bytes: int) -> int:
        """Of a weight as it is kept."""
        bits = BITS.get(self._requests.weights)
        if bits is None or index not in self._shapes or not self._shapes[index].is_quantised:
            return num_bytes
        return min(num_bytes, round(num_elements * bits / 8))

    def _with_weights(self, graph: Graph, layer: Layer, num_tokens: int) -> Layer:
        """Products read their weights as they are kept, and of experts those that are routed to."""
        shaped = [index for index in sorted(set(layer.weights)) if index in self._shapes]
        experts = [index for index in shaped if len(self._shapes[index].shape) == 3]
        works = [self._read(work, graph, shaped) for work in layer.work if work.operator != "_grouped_mm"]
        if len(works) < len(layer.work):
            dtype = next(work.dtype for work in layer.work if work.operator == "_grouped_mm")
            works += [self._routed(graph, index, num_tokens, dtype) for index in experts]
        elif experts:
            raise UsageError(
                f"{self._name}: {layer.name} does not run its experts as one grouped product; give --dtype "
                "bfloat16, in which transformers does, or --mode infer"
            )
        return replace(layer, work=tuple(works))

    def _read(self, work: Work, graph: Graph, shaped: list[int]) -> Work:
        if work.family != "gemm" or len(work.shape) != 4 or work.shape[0] != 1:
            return work
        size = work.shape[2] * work.shape[3]
        own = [graph.weights[index] for index in shaped if graph.weights[index].num_elements == size]
        kept = [
            self._kept_bytes(index, graph.weights[index].num_elements, graph.weights[index].bytes)
            for index in shaped if graph.weights[index].num_elements == size
        ]
        if not own:
            return work
        less = work.num_calls * (own[0].bytes - min(kept))
        return replace(work, traffic_bytes=work.traffic_bytes - less)

    def _routed(self, graph: Graph, index: int, num_tokens: int, dtype: str) -> Work:
        """The product of tokens with the experts that they are routed to."""
        num_experts, rows, columns = self._shapes[index].shape
        each = self._decoder.num_experts_per_token
        active = distinct_experts(num_experts, each, num_tokens)
        weight = graph.weights[index]
        read = self._kept_bytes(index, weight.num_elements, weight.bytes) * active / num_experts
        moved = num_tokens * each * (rows + columns) * ELEMENT_BYTES[dtype]
        return Work(
            family="gemm", operator="_grouped_mm", dtype=dtype, num_calls=1,
            flops=2 * num_tokens * each * rows * columns, traffic_bytes=round(read) + moved,
            shape=(max(1, round(active)), max(1, -(-num_tokens * each // max(1, round(active)))), rows, columns),
        )  # fmt: skip


ALONE = ("gemm", "attention", "softmax", "normalization", "convolution")
"""families with kernels of their own"""


def _fused(layer: Layer) -> Layer:
    """The rest of a layer as one kernel: serving engines fuse it, and launch the kernels of a token all at once."""
    rest = [work for work in layer.work if work.family not in ALONE]
    if not rest:
        return layer
    whole = Work(
        family="elementwise", dtype=max(rest, key=lambda work: work.traffic_bytes).dtype, num_calls=1,
        flops=sum(work.flops for work in rest), traffic_bytes=sum(work.traffic_bytes for work in rest),
    )  # fmt: skip
    return replace(layer, work=(*(work for work in layer.work if work.family in ALONE), whole))


def _attending(layer: Layer) -> list[Work]:
    """What of a layer is attention: fused, or the two batched products that it is taken apart into."""
    return [work for work in layer.work if work.family == "attention" or work.operator in ("bmm", "baddbmm")]


def _without_attention(layer: Layer) -> Layer:
    gone = _attending(layer)
    apart = any(work.family == "gemm" for work in gone)
    return replace(layer, work=tuple(
        work for work in layer.work if work not in gone and not (apart and work.family == "softmax")
    ))  # fmt: skip


def _attention(attention: Attention, num_requests: int, context: int, queries: int, dtype: str) -> Work:
    """Attention of new tokens over a context; queries of a group share what is read of the cache.

    The shape is that of grouped queries: batch x key-value heads, queries of all heads of a group, keys, head size.
    """
    keys, shared = attention.num_keys(context), attention.num_key_value_heads
    flops = attention.decode_flops if queries == 1 else attention.prefill_flops
    elements = keys * attention.cached_elements + queries * flops // 2  # queries and outputs are half their FLOPs
    return Work(
        family="attention", dtype=dtype, num_calls=1, flops=num_requests * queries * keys * flops,
        traffic_bytes=num_requests * elements * ELEMENT_BYTES[dtype],
        shape=(
            num_requests * shared, queries * attention.num_heads // shared, keys,
            attention.cached_elements // (2 * shared),
        ),
    )  # fmt: skip


def mixed(decode: Graph, prefill: Graph, new_tokens: int) -> Graph:
    """Decode with its share of the prefills: what crosses a cut in a round, and the most that a layer needs in either.

    A request of N tokens takes one prefill, which makes its first token, and N - 1 rounds of decode.
    """

    def value(one: Value, other: Value) -> Value:
        return replace(one, bytes=-(-((new_tokens - 1) * one.bytes + decode.batch_size * other.bytes) // new_tokens))

    return replace(
        decode, values=tuple(map(value, decode.values, prefill.values)),
        layers=tuple(
            replace(one, peak_bytes=max(one.peak_bytes, other.peak_bytes))
            for one, other in zip(decode.layers, prefill.layers, strict=True)
        ),
    )  # fmt: skip
