from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autopart.candidates import microbatch_counts, preferred_count


@given(st.integers(1, 512), st.integers(1, 64))
def test_counts_divide_the_batch_and_include_one(batch: int, num_devices: int) -> None:
    counts = microbatch_counts(batch, num_devices)
    assert counts[0] == 1
    assert len(counts) <= 4
    assert all(batch % count == 0 for count in counts)
    assert batch % preferred_count(batch, num_devices) == 0
    assert preferred_count(batch, num_devices) <= 4 * num_devices


def test_known_counts() -> None:
    assert microbatch_counts(16, 2) == (1, 4, 8, 16)
    assert microbatch_counts(16, 1) == (1,)
    assert microbatch_counts(7, 2) == (1, 7)
    assert preferred_count(16, 2) == 8
    assert preferred_count(7, 2) == 7
    assert preferred_count(11, 2) == 1
