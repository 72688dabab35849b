from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autopart.compression import Traffic
from autopart.errors import DeviceError
from autopart.profiling import read_cluster
from autopart.running.cuts import cut_crossings
from autopart.running.emulation import emulated_plan, emulation_notes, limited_links
from autopart.schema.device import Cluster
from autopart.schema.plan import Plan
from tests.running.handmade import Skipping, make_plan, trace_skipping

GRAPH = trace_skipping(Skipping(), 8, 4, training=True).graph


def plan_of(*ranks: int) -> Plan:
    """A plan on absent devices a, b, ..."""
    plan = make_plan(GRAPH, (2, 4)[: len(ranks) - 1], num_microbatches=4, mode="train", schedule="1f1b", ranks=ranks)
    names = {f"cpu:{index}": "abc"[index] for index in range(3)}
    return dataclasses.replace(
        plan,
        stages=tuple(dataclasses.replace(each, devices=(names[each.devices[0]],)) for each in plan.stages),
        cluster=dataclasses.replace(plan.cluster, devices=tuple(
            dataclasses.replace(each, name=names[each.name], kind="t4", backend="absent", torch_device=None)
            for each in plan.cluster.devices
        )),
    )  # fmt: skip


def cluster_of(tmp_path: Path, text: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return read_cluster(cluster_file=path)


THREE = """
devices:
  - {name: a, speed: 1, memory: 1GB, node: home}
  - {name: b, speed: 0.5, memory: 500MB, node: rack}
  - {name: c, speed: 0.25, node: rack}
links: [{between: [home, rack], latency: 1ms, bandwidth: 1MB/s}]
"""


def test_devices_of_the_same_names_stand_for_the_plans(tmp_path: Path) -> None:
    plan = plan_of(0, 1, 2)
    found = emulated_plan(plan, cluster_of(tmp_path, THREE))
    assert [(each.name, each.speed, each.torch_device, each.num_threads) for each in found.cluster.devices] == [
        ("a", 1.0, "cpu", 1), ("b", 0.5, "cpu", 1), ("c", 0.25, "cpu", 1)
    ]
    assert [each.memory_bytes for each in found.cluster.devices[:2]] == [1_000_000_000, 500_000_000]
    assert found.prediction == plan.prediction and found.stages == plan.stages
    assert plan.cluster.devices[0].backend == "absent"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices: [{name: a, speed: 1}]", r"the plan uses b, which the cluster to emulate does not have \(it has a\)"),
        ("devices: [{name: a, speed: 1}, {name: b, kind: t4}]", "b is a t4 in the cluster to emulate; give it speed"),
    ],
)
def test_what_cannot_stand_for_a_device_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        emulated_plan(plan_of(0, 1), cluster_of(tmp_path, text))


def test_every_member_of_a_group_has_links_of_its_own(tmp_path: Path) -> None:
    plan = emulated_plan(plan_of(0, 1), cluster_of(tmp_path, THREE))
    pairs = [dataclasses.replace(each, tensor_parallel=2, devices=names)
             for each, names in zip(plan.stages, (("a", "b"), ("c", "d")), strict=True)]  # fmt: skip
    cluster = cluster_of(tmp_path, """
devices:
  - {name: a, speed: 1, node: home}
  - {name: b, speed: 1, node: home}
  - {name: c, speed: 1, node: rack}
  - {name: d, speed: 1, node: rack}
links:
  - {between: [home, rack], latency: 1ms, bandwidth: 1MB/s}
  - {between: [b, d], latency: 9s, bandwidth: 1MB/s}
""")
    grouped = emulated_plan(dataclasses.replace(plan, stages=tuple(pairs), cluster=cluster), cluster)
    cuts = cut_crossings(grouped, GRAPH, Traffic())
    links = [limited_links(tmp_path / "links", grouped, GRAPH, cuts, member=member) for member in (0, 1)]
    (first,), (second,) = (each._cuts for each in links)
    assert first is not None and second is not None
    assert second.forward_seconds - first.forward_seconds == pytest.approx(len(GRAPH.crossing(2)) * (9 - 1e-3))
    assert sorted(path.name for path in tmp_path.glob("links*")) == ["links0", "links1"]


def test_links_of_groups_of_different_sizes_are_not_limited(tmp_path: Path) -> None:
    plan = plan_of(0, 1, 2)
    pair = dataclasses.replace(plan.stages[0], devices=("a", "b"), data_parallel=2)
    merged = dataclasses.replace(plan.stages[1], layers=plan.stages[1].layers + plan.stages[2].layers, devices=("c",))
    grouped = dataclasses.replace(plan, stages=(pair, merged))
    with pytest.raises(DeviceError, match="stages are groups of different sizes, whose links cannot be limited"):
        emulated_plan(grouped, cluster_of(tmp_path, THREE))


def test_a_cuts_values_take_as_long_as_their_link_says(tmp_path: Path) -> None:
    plan = emulated_plan(plan_of(0, 1, 2), cluster_of(tmp_path, THREE))
    links = limited_links(tmp_path / "links", plan, GRAPH, cut_crossings(plan, GRAPH, Traffic()))
    first, second = links._cuts
    assert second is None, "b and c are in one rack, of which the file says nothing"
    assert first is not None
    values = GRAPH.crossing(2)
    assert first.forward_seconds == pytest.approx(sum(1e-3 + value.bytes / 1e6 for value in values))
    back = [value for value in values if value.differentiable]
    assert 0 < len(back) < len(values)
    assert first.backward_seconds == pytest.approx(sum(1e-3 + value.bytes / 1e6 for value in back))


def test_cuts_between_the_same_two_devices_share_their_link(tmp_path: Path) -> None:
    plan = emulated_plan(plan_of(0, 1, 0), cluster_of(tmp_path, THREE))
    links = limited_links(tmp_path / "links", plan, GRAPH, cut_crossings(plan, GRAPH, Traffic()))
    first, second = links._cuts
    assert first is not None and second is not None and first.link == second.link


def test_what_is_emulated_is_said(tmp_path: Path) -> None:
    plan = emulated_plan(plan_of(0, 1, 2), cluster_of(tmp_path, THREE))
    speeds, caps, links = emulation_notes(plan, "sleep")
    assert speeds == (
        "Emulated: a at 1 of a core, b at 0.5 of a core, c at 0.25 of a core, by sleeping until its CPU time / speed "
        "has passed."
    )
    assert "a 1.00 GB, b 500 MB" in caps
    assert links == "Links slowed down: a-b 1.00 MB/s and 1.00 ms."
    assert "CPU quota" in emulation_notes(plan, "quota")[0]
