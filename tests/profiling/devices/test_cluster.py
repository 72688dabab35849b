from __future__ import annotations

import doctest
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import AutopartError, DeviceError, UsageError
from autopart.profiling.devices import catalogue, cluster, devicelist
from autopart.profiling.devices.cluster import read_cluster
from autopart.profiling.devices.here import physical_memory_bytes
from autopart.schema.device import Cluster

GiB = 2**30


class Card:
    def __init__(self, name: str, total_memory: int) -> None:
        self.name, self.total_memory = name, total_memory


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [Card("NVIDIA GeForce RTX 4090", 25_386_352_640), Card("NVIDIA GeForce GTX 1660", 6_000_000_000)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def names(cluster: Cluster) -> list[str]:
    return [device.name for device in cluster.devices]


def test_kinds_with_counts() -> None:
    found = read_cluster("2xh100-sxm-80gb,4xt4,l4")
    assert names(found) == ["h100-sxm-80gb:0", "h100-sxm-80gb:1", "t4:0", "t4:1", "t4:2", "t4:3", "l4:0"]
    assert {device.backend for device in found.devices} == {"absent"}
    assert found.device("t4:0").memory_bytes == 16_000_000_000 - 600_000_000
    assert "data sheet less 600 MB" in found.device("t4:0").memory_origin
    assert found.device("h100-sxm-80gb:0").rent_usd_per_hour == 3.725


def test_a_list_is_as_good_as_a_comma_list() -> None:
    assert read_cluster(["2xt4", "l4"]) == read_cluster("2xt4, l4") == read_cluster(["t4", "t4,l4"])


def test_emulated_devices() -> None:
    found = read_cluster("cpu:0,cpu:1@0.5")
    assert [(device.kind, device.num_threads, device.speed) for device in found.devices] == [
        ("cpu-1t", 1, 1.0),
        ("cpu-1t", 1, 0.5),
    ]
    assert {device.memory_bytes for device in found.devices} == {physical_memory_bytes() // 2}
    assert found.devices[0].torch_device == "cpu" and "shared by 2" in found.devices[0].memory_origin


def test_the_processor_as_one() -> None:
    (device,) = read_cluster("cpu").devices
    assert (device.name, device.kind) == ("cpu", f"cpu-{torch.get_num_threads()}t")
    assert device.memory_bytes == physical_memory_bytes() > 0
    assert read_cluster("cpu").links == ()


@pytest.mark.usefixtures("no_cards")
@pytest.mark.parametrize("devices", [None, "auto"])
def test_auto_is_the_processor_where_there_is_no_card(devices: str | None) -> None:
    assert names(read_cluster(devices)) == ["cpu"]


@pytest.mark.usefixtures("two_cards")
def test_auto_is_all_cards() -> None:
    found = read_cluster()
    assert names(found) == ["cuda:0", "cuda:1"]
    assert [device.kind for device in found.devices] == ["rtx-4090", "gtx-1660"]
    assert found.device("cuda:0").memory_bytes == 25_386_352_640 - 600_000_000
    assert found.device("cuda:0").rent_usd_per_hour and found.device("cuda:1").rent_usd_per_hour is None
    assert "pcie-3-x16" in found.link(*found.devices).source  # the slower host link, of the unknown card


@pytest.mark.usefixtures("two_cards")
def test_what_is_here_and_what_is_not_may_be_mixed() -> None:
    assert names(read_cluster("cuda:1,cpu,2xt4")) == ["cuda:1", "cpu", "t4:0", "t4:1"]


@pytest.mark.usefixtures("no_cards")
def test_an_absent_card_is_told_what_is_here() -> None:
    with pytest.raises(DeviceError, match=r"no cuda:7 here, but no CUDA device and cpu with \d+ threads"):
        read_cluster("cuda:7")


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize(
    ("devices", "complaint"),
    [
        ("cuda:2", "cuda:0, cuda:1 and cpu"),
        ("cuda:0,cuda:0", "cuda:0 is listed 2 times"),
        ("cuda:0,auto", "listed 2 times"),
        ("cpu:0,cpu:0", "listed 2 times"),
        ("cpu,cpu:0", "give either cpu or cpu:0"),
        ("", "empty place"),
        ([], "empty place"),
        ("t4,,t4", "empty place"),
        ("cuda", "write cuda:0,cuda:1"),
        ("2xcuda:0", "write cuda:0,cuda:1"),
        ("2xcpu", "write cuda:0,cuda:1"),
        ("cuda:0@0.5", "write cuda:0,cuda:1"),
        ("cpu:x", "write cuda:0,cuda:1"),
        ("cpu:0@0", "must lie in"),
        ("cpu:0@1.5", "must lie in"),
        ("cpu:0@nan", "must lie in"),
        ("cpu:0@fast", "must lie in"),
        ("0xt4", "count between 1 and 1024"),
        ("99999999xt4", "count between 1 and 1024"),
        ("1024xt4,l4", "at most 1024"),
        ("2xh100", "h100-pcie-80gb"),
        ("t5", "no device kind"),
    ],
)
def test_refuses_what_names_no_devices(devices: str | list[str], complaint: str) -> None:
    with pytest.raises(DeviceError) as refused:
        read_cluster(devices)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


def test_caps_of_devices_and_kinds() -> None:
    found = read_cluster("2xt4,l4", max_memory="t4=12GiB,t4:1=8GiB")
    assert [device.memory_bytes for device in found.devices] == [12 * GiB, 8 * GiB, 24_000_000_000 - 600_000_000]
    assert found.device("t4:0").memory_origin == "cap given by the user"
    assert read_cluster("2xt4,l4", max_memory=["t4=12GiB", "t4:1=8GiB"]) == found
    assert read_cluster("4090", max_memory="4090=8GiB").devices[0].memory_bytes == 8 * GiB


@pytest.mark.parametrize(
    ("caps", "complaint"),
    [
        ("t4=99GiB", "106 GB, is above the 15.4 GB"),
        ("t4", "DEVICE=SIZE"),
        ("=3GiB", "DEVICE=SIZE"),
        ("", "DEVICE=SIZE"),
        ("t4=", "not a size"),
        ("t4=lots", "not a size"),
        ("t4=-1GiB", "not a size"),
        ("t4=0", "not a positive"),
        ("l4=3GiB", "fits no device"),
        ("cuda:0=3GiB", "fits no device"),
        ("t4=3GiB,t4=4GiB", "capped twice"),
    ],
)
def test_refuses_caps_that_make_no_sense(caps: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_cluster("2xt4", max_memory=caps)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


def test_a_cluster_passes_and_is_not_mutated() -> None:
    before = read_cluster("2xt4,l4")
    copy = Cluster(devices=before.devices, links=before.links)
    assert read_cluster(before) == before
    capped = read_cluster(before, max_memory="l4=1GiB")
    assert capped.device("l4:0").memory_bytes == GiB and before == copy


def test_links_follow_the_kinds() -> None:
    found = read_cluster("2xh100-sxm-80gb,2xt4,cpu-generic")
    h100, other_h100, t4, other_t4, cpu = found.devices
    assert found.link(h100, other_h100).bandwidth_bytes_per_second == pytest.approx(0.83 * 450e9)
    assert "pcie-3-x16-peer" in found.link(t4, other_t4).source
    through_host = found.link(h100, t4)
    slower = catalogue.link_kind("pcie-3-x16")
    assert through_host.bandwidth_bytes_per_second == slower.efficiency.value * slower.bandwidth_bytes_per_second.value
    assert found.link(t4, h100) == through_host
    assert "pcie-4-x16" in found.link(h100, cpu).source
    assert {link.origin for link in found.links} == {"assumed"}


def test_few_rules_for_many_devices() -> None:
    assert len(read_cluster("64xh100-sxm-80gb,64xt4").links) == 3


@given(st.lists(st.sampled_from(["t4", "2xl4", "rtx-4090", "cpu:0", "cpu:1@0.5", "apple-m1"]), min_size=1, unique=True))
def test_every_pair_has_a_link(words: list[str]) -> None:
    found = read_cluster(words)
    for one, other in combinations(found.devices, 2):
        link = found.link(one, other)
        assert link == found.link(other, one) and link.source and link.seconds(10**6) > 0


@given(st.text(max_size=30))
def test_any_text_is_devices_or_a_one_line_error(text: str) -> None:
    try:
        assert read_cluster(text).devices
    except AutopartError as error:
        assert isinstance(error, DeviceError) and str(error)


def test_examples_in_the_docstrings() -> None:
    for module in (cluster, devicelist):
        assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted
