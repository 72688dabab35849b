from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.planning.kvcache import cache_bytes, cache_bytes_per_token


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
