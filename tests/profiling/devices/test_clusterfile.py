from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from autopart.errors import DeviceError, FileFormatError, UsageError
from autopart.profiling.devices.cluster import read_cluster
from autopart.schema.device import Cluster

DESIGN = """
devices:
  - {name: desk, kind: rtx-4090, node: home, memory: 21GiB}
  - {name: old, kind: t4, count: 2, node: rack}
  - {name: odd, node: rack, memory: 8GiB, bandwidth: 300GB/s, flops: {fp32: 10e12, fp16: 20e12}}
links:
  - {within: home, latency: 5us, bandwidth: 25GB/s}
  - {between: [home, rack], latency: 80us, bandwidth: 1.1GB/s}
  - {between: [old0, old1], latency: 10us, bandwidth: 11GB/s}
"""


def read(tmp_path: Path, text: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return read_cluster(cluster_file=path)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    found = read(tmp_path, DESIGN)
    desk, old0, old1, odd = found.devices
    assert [device.name for device in found.devices] == ["desk", "old0", "old1", "odd"]
    assert [device.node for device in found.devices] == ["home", "rack", "rack", "rack"]
    assert desk.memory_bytes == 21 * 2**30 and odd.memory_bytes == 8 * 2**30
    (own,) = found.kinds
    assert own.name == odd.kind == "odd" and own.bandwidth_bytes_per_second.value == 300e9
    assert [(peak.dtype, peak.flops_per_second.value) for peak in own.peaks] == [("float32", 1e13), ("float16", 2e13)]
    assert found.link(old0, old1).bandwidth_bytes_per_second == 11e9
    assert found.link(desk, odd).latency_seconds == 80e-6
    assert found.link(old1, odd).origin == "assumed"
    assert all(found.link(*pair) for pair in combinations(found.devices, 2))


def test_emulated_devices_have_a_speed(tmp_path: Path) -> None:
    text = """
devices:
  - {name: desk, speed: 1, memory: 500MB, node: home}
  - {name: old, speed: 0.25, count: 2, node: rack}
links: [{between: [home, rack], latency: 2ms, bandwidth: 100Mbit/s}]
"""
    found = read(tmp_path, text)
    assert [(each.name, each.speed, each.torch_device) for each in found.devices] == [
        ("desk", 1.0, "cpu"), ("old0", 0.25, "cpu"), ("old1", 0.25, "cpu")
    ]
    assert {each.kind for each in found.devices} == {"cpu-1t"} and found.devices[0].memory_bytes == 500_000_000
    assert found.link(found.devices[0], found.devices[2]).bandwidth_bytes_per_second == 12.5e6


@pytest.mark.parametrize("row", ["speed: 0.5, kind: t4", "speed: 2", "speed: 0"])
def test_a_speed_that_makes_no_sense_is_refused(tmp_path: Path, row: str) -> None:
    with pytest.raises(DeviceError, match="speed"):
        read(tmp_path, f"devices: [{{name: a, {row}}}]")


def test_the_most_specific_link_wins_wherever_it_stands(tmp_path: Path) -> None:
    text = """
devices:
  - {name: t, kind: t4, count: 3, node: rack}
links:
  - {within: rack, latency: 9us, bandwidth: 9GB/s}
  - {between: [t0, t1], latency: 1us, bandwidth: 1GB/s}
"""
    found = read(tmp_path, text)
    assert found.link(found.device("t0"), found.device("t1")).bandwidth_bytes_per_second == 1e9
    assert found.link(found.device("t0"), found.device("t2")).bandwidth_bytes_per_second == 9e9


def test_a_link_by_its_kind(tmp_path: Path) -> None:
    text = """
devices: [{name: a, kind: t4, node: x}, {name: b, kind: t4, node: y}]
links: [{between: [x, y], kind: ethernet-1g}]
"""
    link = read(tmp_path, text).links[0]
    assert link.origin == "given" and link.bandwidth_bytes_per_second == pytest.approx(0.9 * 1e9 / 8)


def test_nodes_are_joined_by_ethernet_unless_given(tmp_path: Path) -> None:
    found = read(tmp_path, "devices: [{name: a, kind: t4, node: x}, {name: b, kind: t4, node: y}]")
    link = found.link(*found.devices)
    assert link.origin == "assumed" and "ethernet-10g" in link.source


def test_devices_of_this_machine_may_have_names_and_caps(tmp_path: Path) -> None:
    found = read(tmp_path, "devices: [{name: slow, kind: 'cpu:0@0.5', memory: 1GiB}, {name: fast, kind: 'cpu:1'}]")
    slow, fast = found.devices
    assert (slow.backend, slow.speed, slow.memory_bytes) == ("cpu", 0.5, 2**30)
    assert fast.name == "fast" and fast.memory_bytes > 2**30


def test_a_rent_of_ones_own(tmp_path: Path) -> None:
    assert read(tmp_path, "devices: [{name: a, kind: t4, rent: 0.35}]").devices[0].rent_usd_per_hour == 0.35


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("devices: []", "devices: "),
        ("", "the file: "),
        ("- 1", "the file: "),
        ("device: []", "device: unknown field"),
        ("devices: [{kind: t4}]", "devices.0.name: Field required"),
        ("devices: [{name: a, kind: t4, memmory: 3GiB}]", "devices.0.memmory: unknown field"),
        ("devices: [{name: a, kind: t4}, {name: b, kind: t5}]", "devices.1: no device kind is called 't5'"),
        ("devices: [{name: a, kind: t4, memory: much}]", "devices.0: 'much' is not a size"),
        ("devices: [{name: a, kind: t4, memory: yes}]", "devices.0.memory: "),
        ("devices: [{name: a, kind: t4, memory: 20GiB}]", "21.5 GB is more than a t4 has, 15.4 GB"),
        ("devices: [{name: a, kind: t4, count: 0}]", "devices.0.count: "),
        ("devices: [{name: a, kind: t4, count: 5000}]", "devices.0.count: "),
        ("devices: [{name: 'a b', kind: t4}]", "devices.0.name: "),
        ("devices: [{name: a, kind: 2xt4}]", "is 2 devices"),
        ("devices: [{name: a, kind: 'cpu:0', count: 2}]", "leave count out"),
        ("devices: [{name: a, kind: t4, bandwidth: 1GB/s}]", "give either a kind, or bandwidth"),
        ("devices: [{name: a, memory: 1GiB, bandwidth: 1GB/s}]", "all of memory, bandwidth and flops"),
        ("devices: [{name: a, memory: 1GiB, bandwidth: 1GB/s, flops: {fp33: 1e12}}]", "unknown data type 'fp33'"),
        ("devices: [{name: a, memory: 1GiB, bandwidth: 1GB/s, flops: {}}]", "devices.0.flops: "),
        ("devices: [{name: a, memory: 1GiB, bandwidth: 1GB/s, flops: {fp32: 0}}]", "devices.0: 0 is not"),
        ("devices: [{name: t4, memory: 1GiB, bandwidth: 1GB/s, flops: {fp32: 1e12}}]", "another name"),
        ("devices: [{name: a, kind: t4}, {name: a, kind: l4}]", "devices: the name a is there 2 times"),
    ],
)
def test_a_wrong_device_is_named_by_file_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DeviceError) as refused:
        read(tmp_path, text)
    assert complaint in str(refused.value) and "cluster.yaml: " in str(refused.value)


@pytest.mark.parametrize(
    ("link", "complaint"),
    [
        ("{within: home, latency: 1us, bandwidth: 1GB/s}", "home must name a node; nodes are x, y"),
        ("{between: [x, z], latency: 1us, bandwidth: 1GB/s}", "two devices or two nodes"),
        ("{between: [a, y], latency: 1us, bandwidth: 1GB/s}", "two devices or two nodes"),
        ("{between: [x, x], latency: 1us, bandwidth: 1GB/s}", "write within: x"),
        ("{between: [x], latency: 1us, bandwidth: 1GB/s}", "links.0.between"),
        ("{within: x, between: [x, y], latency: 1us, bandwidth: 1GB/s}", "either within"),
        ("{latency: 1us, bandwidth: 1GB/s}", "either within"),
        ("{within: x, latency: 1us}", "give latency and bandwidth"),
        ("{within: x, latency: 1us, kind: loopback}", "give either a kind"),
        ("{within: x, kind: string}", "no link kind is called 'string'"),
        ("{within: x, latency: soon, bandwidth: 1GB/s}", "links.0: 'soon' is not a time"),
        ("{within: x, latency: 1us, bandwidth: 0}", "links.0: 0 is not a positive"),
        ("{within: x, latency: 1us, bandwith: 1GB/s}", "links.0.bandwith: unknown field"),
    ],
)
def test_a_wrong_link_is_named_by_file_and_field(tmp_path: Path, link: str, complaint: str) -> None:
    devices = "devices: [{name: a, kind: t4, node: x}, {name: b, kind: t4, node: y}]"
    with pytest.raises(DeviceError) as refused:
        read(tmp_path, f"{devices}\nlinks: [{link}]")
    assert complaint in str(refused.value) and "cluster.yaml: links" in str(refused.value)


def test_the_same_pair_twice(tmp_path: Path) -> None:
    text = DESIGN + "  - {between: [old1, old0], latency: 1us, bandwidth: 1GB/s}\n"
    with pytest.raises(DeviceError, match="joined 2 times"):
        read(tmp_path, text)


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="not YAML"):
        read(tmp_path, "devices: [")
    with pytest.raises(FileFormatError, match="No such file"):
        read_cluster(cluster_file=tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(FileFormatError, match="UTF-8"):
        read_cluster(cluster_file=tmp_path / "binary.yaml")
    with pytest.raises(UsageError, match="given twice"):
        read_cluster("t4", cluster_file=tmp_path / "cluster.yaml")


def test_a_reserve_is_taken_off(tmp_path: Path) -> None:
    rows = "{name: desk, kind: rtx-4090, reserve: 1.5GiB}, {name: odd, kind: t4, memory: 8GiB, reserve: 1GiB}"
    desk, odd = read(tmp_path, f"devices: [{rows}]").devices
    assert desk.overhead.reserve_bytes == 3 * 2**29
    assert odd.memory_bytes == 7 * 2**30 and "left to others" in odd.memory_origin
    with pytest.raises(DeviceError, match=r"devices\.0: a reserve of .* leaves nothing"):
        read(tmp_path, "devices:\n  - {name: a, kind: t4, reserve: 16GB}\n")
