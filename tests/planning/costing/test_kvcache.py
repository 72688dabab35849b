from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.planning.costing.kvcache import cache_bytes, cache_bytes_per_token, layer_cache_bytes
from autopart.planning.costing.memory import Rules, memory_terms, stage_facts, stage_memory
from autopart.planning.costing.tables import facts_table
from autopart.schema.graph import Graph, Work
from autopart.schema.job import Job
from tests.planning.problems import chain


def test_llama_70b_needs_320_kib_per_token() -> None:
    assert cache_bytes_per_token(80, 8, 128) == 320 * 1024
    assert cache_bytes_per_token(80, 64, 128, element_bytes=4) == 16 * 320 * 1024


def test_a_cache_is_tokens_times_sequences_in_whole_blocks() -> None:
    assert cache_bytes(10, 100, 3) == 3000
    assert cache_bytes(10, 97, 3, block_tokens=16) == 10 * 112 * 3


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 512), st.integers(1, 256))
def test_blocks_never_make_it_smaller_nor_much_larger(per_token: int, tokens: int, sequences: int, block: int) -> None:
    exact, blocked = cache_bytes(per_token, tokens, sequences), cache_bytes(per_token, tokens, sequences,
                                                                            block_tokens=block)
    assert exact <= blocked <= exact + per_token * (block - 1) * sequences


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        cache_bytes(1, -1, 1)


def attending(graph: Graph, index: int, *, heads: int, size: int) -> Graph:
    """The graph with fused attention of float16 in one layer."""
    work = Work(
        family="attention", dtype="float16", num_calls=1, flops=1, traffic_bytes=1, operator="sdpa",
        shape=(graph.batch_size * heads, 7, 7, size),
    )
    layers = list(graph.layers)
    layers[index] = replace(layers[index], work=(*layers[index].work, work))
    return replace(graph, layers=tuple(layers))


def test_the_layers_that_attend_keep_keys_and_values() -> None:
    graph = attending(attending(chain(4), 1, heads=8, size=64), 3, heads=2, size=64)
    assert layer_cache_bytes(graph) == (0, 2 * 8 * 64 * 2, 0, 2 * 2 * 64 * 2)


def test_a_plan_for_generation_has_a_term_for_its_cache() -> None:
    graph = attending(chain(4), 1, heads=8, size=64)
    without, with_cache = (Rules.of(job, "gpipe", 1) for job in (
        Job(batch=1), Job(batch=1, cache_tokens=100, cache_sequences=3)
    ))
    plain, caching = (stage_memory(stage_facts(graph, 0, 2), rules, 1) for rules in (without, with_cache))
    assert (plain.kv_cache, caching.kv_cache) == (0, 300 * 2 * 8 * 64 * 2)
    assert caching.total - plain.total == caching.kv_cache
    assert stage_memory(stage_facts(graph, 2, 4), with_cache, 1).kv_cache == 0
    table = memory_terms(facts_table(graph, (0, 2, 4)), with_cache)
    assert table.kv_cache[0, 1] == caching.kv_cache and table.kv_cache[1, 2] == 0
    assert table.total(1)[0, 1] == caching.total


@pytest.mark.parametrize("words", [{"cache_tokens": 5}, {"cache_sequences": 5}, {"cache_tokens": -1}])
def test_tokens_and_sequences_come_together(words: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="tokens and sequences"):
        Job(batch=1, **words)  # type: ignore[arg-type]
