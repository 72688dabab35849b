"""What generating text keeps of every token: the keys and values of all layers."""

from __future__ import annotations

from autopart.schema.graph import Graph, Layer

__all__ = ["cache_bytes", "cache_bytes_per_token", "layer_cache_bytes"]

ELEMENT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def cache_bytes_per_token(num_layers: int, num_key_value_heads: int, head_size: int, element_bytes: int = 2) -> int:
    """Bytes of one token's keys and values in the layers of a stage.

    >>> cache_bytes_per_token(80, 8, 128)  # Llama 3 70B in bfloat16: 320 KiB
    327680

    Args:
        num_layers: attention layers of the stage.
        num_key_value_heads: heads that have keys and values of their own (grouped queries have fewer).
        head_size: elements of one head.
        element_bytes: of the cache's data type.
    """
    return 2 * num_layers * num_key_value_heads * head_size * element_bytes


def layer_cache_bytes(graph: Graph, first: int = 0, last: int | None = None) -> tuple[int, ...]:
    """Bytes of one token's keys and values in each layer, by the fused attention that the trace saw there.

    Of layers first .. last - 1, or of all.

    Where queries share keys and values the trace may see them repeated: never less than is needed.
    """
    return tuple(_layer_bytes(layer, graph.batch_size) for layer in graph.layers[first:last])


def _layer_bytes(layer: Layer, batch_size: int) -> int:
    if layer.cache_bytes_per_token is not None:
        return layer.cache_bytes_per_token
    fused = [work for work in layer.work if work.family == "attention" and len(work.shape) == 4]
    return sum(
        cache_bytes_per_token(work.num_calls, -(-work.shape[0] // batch_size), work.shape[3], ELEMENT_BYTES[work.dtype])
        for work in fused
    )


def cache_bytes(per_token_bytes: int, num_tokens: int, concurrency: int, *, block_tokens: int = 1) -> int:
    """Bytes of the cache of a stage.

    Args:
        per_token_bytes: see ``cache_bytes_per_token``.
        num_tokens: of one sequence, prompt and answer.
        concurrency: sequences generated at once.
        block_tokens: granularity of the allocation; 16 in vLLM (Kwon et al. 2023, section 4.1).
    """
    if min(per_token_bytes, num_tokens, concurrency) < 0 or block_tokens < 1:
        raise ValueError("sizes of a cache must not be negative, and a block has at least one token")
    num_blocks = -(-num_tokens // block_tokens)
    return per_token_bytes * num_blocks * block_tokens * concurrency
