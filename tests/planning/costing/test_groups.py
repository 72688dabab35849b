from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Literal

from autopart.planning.costing.groups import LinkIndex, group_devices, link_between, links_within
from autopart.schema.device import Cluster
from tests.planning.problems import cluster, device, link


def names(devices: Cluster) -> list[list[str]]:
    return [[d.name for d in group.devices] for group in group_devices(devices)]


def test_equal_devices_with_equal_links_are_one_group() -> None:
    assert names(cluster(device("a"), device("b"), device("c"))) == [["a", "b", "c"]]


def test_kind_speed_and_memory_part_groups() -> None:
    devices = cluster(device("a"), device("b", kind="slow"), device("c", speed=0.5), device("d", memory_bytes=5))
    assert names(devices) == [["a"], ["b"], ["c"], ["d"]]


def test_two_nodes_of_equal_devices_are_two_groups() -> None:
    """Every device sees one fast and two slow links, and yet not all of them may be swapped."""
    links = (link(bandwidth=1e11, ends=("n", "n")), link(bandwidth=1e11, ends=("m", "m")), link(bandwidth=1e9))
    devices = cluster(device("a"), device("b", node="m"), device("c"), device("d", node="m"), links=links)
    assert names(devices) == [["a", "c"], ["b", "d"]]
    inside, across = links_within(devices, group_devices(devices))[0]
    assert inside is not None
    assert across is not None
    assert inside.bandwidth_bytes_per_second > across.bandwidth_bytes_per_second


def test_no_link_is_a_property_too() -> None:
    devices = cluster(device("a"), device("b"), device("c", node="m"), links=(link(ends=("n", "n")),))
    assert names(devices) == [["a", "b"], ["c"]]
    assert links_within(devices, group_devices(devices))[0][1] is None


def test_a_device_of_a_wish_is_alone_wherever_it_stands() -> None:
    three = cluster(device("a"), device("b"), device("c"))
    for name in ("a", "b", "c"):
        groups = group_devices(three, frozenset({name}))
        assert sorted(group.size for group in groups) == [1, 2]
        assert [group.device.name for group in groups if group.size == 1] == [name]


def test_the_index_of_links_finds_the_rule_that_the_cluster_finds() -> None:
    rules = tuple(
        replace(link(bandwidth=10.0 ** (9 - at), ends=ends), level=level)
        for at, (level, ends) in enumerate(LEVELS)
    )
    devices = tuple(
        device(f"{kind}{node}{n}", kind=kind, node=node) for kind in ("x", "y") for node in "pq" for n in range(2)
    )
    for order in permutations(rules, 4):
        here = Cluster(devices=devices, links=order)
        index = LinkIndex(here)
        for one, other in permutations(devices, 2):
            assert index.between(one, other) is link_between(here, one, other)


LEVELS: tuple[tuple[Literal["device", "kind", "node"], tuple[str, str]], ...] = (
    ("device", ("xp0", "yq1")), ("kind", ("x", "*")), ("node", ("p", "q")), ("node", ("*", "*")), ("node", ("p", "p")),
)
