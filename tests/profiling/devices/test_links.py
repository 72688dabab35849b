from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import RunError
from autopart.profiling.devices import links
from autopart.profiling.devices.cluster import read_cluster
from autopart.profiling.devices.links import measure_links
from autopart.profiling.devices.pingpong import NUM_REPEATS, SIZES_BYTES, Sample, fit, time_copies, time_round_trips
from autopart.schema.device import Cluster, Device


class Wire:
    """A clock that only messages move: 20 us and 2 GB/s one way, every tenth message late."""

    def __init__(self, latency_seconds: float = 20e-6, bytes_per_second: float = 2e9) -> None:
        self.now = 0.0
        self.num_messages = 0
        self.latency_seconds, self.bytes_per_second = latency_seconds, bytes_per_second

    def clock(self) -> float:
        return self.now

    def exchange(self, num_bytes: int) -> None:
        self.num_messages += 1
        late = 5.0 if self.num_messages % 10 == 0 else 0.0
        self.now += 2 * (self.latency_seconds + num_bytes / self.bytes_per_second) + late

    def measure(self, one: Device, other: Device, clock: Callable[[], float]) -> Sequence[Sample]:
        return time_round_trips(self.exchange, self.clock)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))


@given(st.floats(min_value=1e-7, max_value=1e-3), st.floats(min_value=1e7, max_value=1e12))
def test_the_line_is_found(latency_seconds: float, bytes_per_second: float) -> None:
    samples = [Sample(num_bytes=n, seconds=latency_seconds + n / bytes_per_second) for n in SIZES_BYTES]
    found_latency, found_rate = fit(samples)
    assert all(found_latency + s.num_bytes / found_rate == pytest.approx(s.seconds, rel=1e-4) for s in samples)


def test_a_latency_is_never_negative() -> None:
    latency, rate = fit([Sample(num_bytes=1000, seconds=1e-6), Sample(num_bytes=2000, seconds=4e-6)])
    assert latency == 0 and 5e8 < rate < 1e9


def test_no_bandwidth_where_size_does_not_matter() -> None:
    with pytest.raises(ValueError, match="take no longer"):
        fit([Sample(num_bytes=1000, seconds=4e-6), Sample(num_bytes=10**6, seconds=1e-6)])


def test_round_trips_are_halved_and_late_ones_do_not_count() -> None:
    wire = Wire()
    samples = time_round_trips(wire.exchange, wire.clock, (1000, 2_000_000))
    assert [sample.seconds for sample in samples] == pytest.approx([20.5e-6, 1020e-6], rel=1e-6)
    assert wire.num_messages >= 2 * NUM_REPEATS


def test_copies_are_timed_with_the_clock_that_is_given() -> None:
    ticks = iter(range(10**6))
    samples = time_copies(torch.device("cpu"), torch.device("cpu"), lambda: float(next(ticks)), (64, 128))
    assert samples == [Sample(num_bytes=64, seconds=1.0), Sample(num_bytes=128, seconds=1.0)]


def test_measured_rules_stand_before_the_assumed() -> None:
    before = read_cluster("cpu:0,cpu:1@0.5,2xt4")
    after = measure_links(before, measure=Wire().measure)
    link = after.link(after.device("cpu:0"), after.device("cpu:1"))
    assert link.origin == "measured" and "gloo" in link.source and torch.__version__ in link.source
    assert link.latency_seconds == pytest.approx(20e-6) and link.bandwidth_bytes_per_second == pytest.approx(2e9)
    assert after.link(after.device("t4:0"), after.device("t4:1")).origin == "assumed"
    assert after.devices == before.devices and all(link.origin == "assumed" for link in before.links)


def test_given_rules_stand_before_the_measured(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "devices: [{name: a, kind: 'cpu:0'}, {name: b, kind: 'cpu:1'}]\n"
        "links: [{within: local, latency: 1us, bandwidth: 1GB/s}]"
    )
    after = measure_links(read_cluster(cluster_file=path), measure=Wire().measure)
    assert after.link(*after.devices).origin == "given"
    assert [link.origin for link in after.links] == ["given", "measured", "assumed"]


def test_a_second_time_comes_from_the_cache() -> None:
    wire = Wire()
    first = measure_links(read_cluster("cpu:0,cpu:1"), measure=wire.measure)
    num_messages = wire.num_messages
    assert measure_links(read_cluster("cpu:0,cpu:1,cpu:2"), measure=wire.measure).links[0] == first.links[0]
    assert wire.num_messages == num_messages
    measure_links(read_cluster("cpu:0,cpu:1"), measure=wire.measure, refresh=True)
    assert wire.num_messages == 2 * num_messages


def test_measuring_again_replaces_what_was_measured() -> None:
    once = measure_links(read_cluster("cpu:0,cpu:1"), measure=Wire().measure)
    twice = measure_links(once, measure=Wire(bytes_per_second=1e9).measure, refresh=True)
    assert len(twice.links) == len(once.links)
    assert twice.links[0].bandwidth_bytes_per_second == pytest.approx(1e9)


def test_what_cannot_be_measured_stays_assumed_and_is_said() -> None:
    def fail(one: Device, other: Device, clock: Callable[[], float]) -> Sequence[Sample]:
        raise RunError("no loopback here")

    before = read_cluster("cpu:0,cpu:1")
    with pytest.warns(UserWarning, match="cpu:0-cpu:1 could not be measured"):
        assert measure_links(before, measure=fail) == before


@pytest.mark.parametrize("devices", ["cpu", "2xt4", "cpu:0,t4"])
def test_nothing_to_measure(devices: str) -> None:
    before = read_cluster(devices)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure_links(before, measure=Wire().measure) == before


def test_every_pair_with_a_card_is_measured() -> None:
    def card(index: int) -> Device:
        return Device(
            name=f"cuda:{index}", kind="rtx-4090", node="local", memory_bytes=1, memory_origin="", backend="cuda",
            torch_device=f"cuda:{index}",
        )  # fmt: skip

    told: list[tuple[str, int, int]] = []
    cluster = Cluster(devices=(card(0), card(1), *read_cluster("cpu").devices))
    after = measure_links(cluster, measure=Wire().measure, progress=lambda *what: told.append(what))
    assert [link.ends for link in after.links] == [("cuda:0", "cuda:1"), ("cuda:0", "cpu"), ("cuda:1", "cpu")]
    assert told == [("measuring links", done, 3) for done in range(4)]


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(RunError, match="a process failed: it said nothing"):
        links._measure_processes()


@pytest.mark.slow
def test_two_real_processes() -> None:
    after = measure_links(read_cluster("cpu:0,cpu:1"))
    link = after.link(*after.devices)
    assert link.origin == "measured"
    assert 1e7 < link.bandwidth_bytes_per_second < 1e11 and 0 <= link.latency_seconds < 0.5
