"""What tests of many rooms share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test finds or leaves anything in the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPART_CACHE", str(tmp_path_factory.mktemp("session-cache")))
        yield


@pytest.fixture(scope="module")
def kept_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests of a module share a cache: what one of them has traced the next one reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOPART_CACHE", str(tmp_path_factory.mktemp("module-cache")))
        patch.setattr("__main__.__file__", __file__, raising=False)  # a worker of pytest-xdist has none
        yield


@pytest.fixture
def quick_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes here exchange 1 GB/s after 20 us: none are started to find that out.

    That real ones can be measured is for tests/profiling/devices/test_links.py to show.
    """
    from autopart.profiling.devices import links
    from autopart.profiling.devices.pingpong import SIZES_BYTES, Sample

    samples = [Sample(num_bytes=size, seconds=20e-6 + size / 1e9) for size in SIZES_BYTES]
    monkeypatch.setattr(links, "_measure_processes", lambda: samples)
