from __future__ import annotations

import pytest

from autopart.errors import UsageError
from autopart.profiling import read_cluster
from autopart.profiling.devices.catalogue import kinds
from autopart.profiling.devices.overheads import overhead_of, with_reserve
from autopart.schema.device import Overhead


def test_accelerators_have_a_context_and_an_allocator_and_processors_have_not() -> None:
    for kind in kinds():
        found = overhead_of(kind.vendor)
        if kind.vendor in ("CPU", "Apple"):
            assert found == Overhead()
        else:
            assert 300e6 <= found.context_bytes <= 1e9
            assert found.segment_bytes == 22 * 2**20
            assert 0 < found.fragmentation_permille <= 100


def test_a_kind_of_ones_own_is_taken_to_be_an_accelerator() -> None:
    assert overhead_of("given") == overhead_of("whoever") != Overhead()


def test_context_and_reserve_are_off_the_cap_and_visible() -> None:
    (plain,) = read_cluster("t4").devices
    (kept,) = read_cluster("t4", reserve="t4=3GB").devices
    assert plain.overhead.context_bytes == 600_000_000 == 16_000_000_000 - plain.memory_bytes
    assert kept.memory_bytes == plain.memory_bytes - 3_000_000_000
    assert kept.overhead.reserve_bytes == 3_000_000_000
    assert kept.memory_origin == f"{plain.memory_origin}, less 3.00 GB left to others"


def test_a_cap_may_be_given_beside_a_reserve_but_not_above_it() -> None:
    (found,) = read_cluster("t4", reserve="t4:0=3GB", max_memory="t4=8GB").devices
    assert found.memory_bytes == 8_000_000_000
    with pytest.raises(UsageError, match=r"above the 12\.4 GB it has"):
        read_cluster("t4", reserve="t4=3GB", max_memory="t4=13GB")


@pytest.mark.parametrize(("reserve", "message"), [
    ("t4=16GB", "leaves nothing"),
    ("t4", "must be DEVICE=SIZE"),
    ("l4=1GB", "the reserve of 'l4' fits no device"),
    ("t4=1GB,t4=2GB", "left twice"),
])
def test_reserves_that_make_no_sense(reserve: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_cluster("2xt4", reserve=reserve)


def test_reserves_add_up() -> None:
    (device,) = read_cluster("t4").devices
    assert with_reserve(with_reserve(device, 10), 5).overhead.reserve_bytes == 15
