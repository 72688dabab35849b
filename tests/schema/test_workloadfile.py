from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopart.errors import FileFormatError
from autopart.schema.workloadfile import load_workload, parse_workload

GOOD: dict[str, Any] = {
    "maxSizePerFPGA": 16e9, "maxFPGAs": 2.0, "maxCPUs": 1, "comment": "other fields may be there",
    "nodes": [
        {"id": 5, "name": "a", "supportedOnFpga": 1, "cpuLatency": 10, "fpgaLatency": 1.5, "isBackwardNode": False,
         "colorClass": 3, "size": 7},
        {"id": 9, "supportedOnFpga": False, "cpuLatency": 1, "fpgaLatency": 0, "isBackwardNode": 0},
    ],
    "edges": [{"sourceId": 5, "destId": 9, "cost": 0.25, "size": 100}],
}


def test_reads_the_format() -> None:
    job = parse_workload(json.dumps(GOOD))
    assert (job.num_accelerators, job.num_cpus, job.accelerator_bytes) == (2, 1, 16e9)
    first, second = job.nodes
    assert (first.id, first.accelerator_time, first.cpu_time, first.color_class, first.bytes) == (5, 1.5, 10.0, 3, 7.0)
    assert (second.accelerator_allowed, second.color_class, second.bytes) == (False, None, 0.0)
    assert job.out_cost() == {5: 0.25}


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    data = copy.deepcopy(GOOD)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(("change", "message"), [
    (lambda d: d.pop("maxFPGAs"), "maxFPGAs: missing field"),
    (lambda d: d.update(maxFPGAs=1.5), r"maxFPGAs: must be a whole number \(here 1.5\)"),
    (lambda d: d.update(maxFPGAs=0, maxCPUs=0), "there must be a device"),
    (lambda d: d.update(maxFPGAs=-1), "-1 accelerators"),
    (lambda d: d.update(nodes=[]), "no nodes"),
    (lambda d: d.update(nodes={}), "nodes: must be an array"),
    (lambda d: d["nodes"].append(7), "nodes.2 is not a JSON object"),
    (lambda d: d["nodes"][0].pop("cpuLatency"), "nodes.0.cpuLatency: missing field"),
    (lambda d: d["nodes"][1].update(fpgaLatency="x"), r"nodes.1.fpgaLatency: must be a finite number \(here \"x\"\)"),
    (lambda d: d["nodes"][1].update(isBackwardNode=2), "nodes.1.isBackwardNode: must be true, false, 0 or 1"),
    (lambda d: d["nodes"][1].update(cpuLatency=-1), "node 9: cpu_time is -1.0"),
    (lambda d: d["nodes"][1].update(id=5), "ids must differ"),
    (lambda d: d["edges"][0].update(destId=4), "edge 5 → 4: there is no node 4"),
    (lambda d: d["edges"][0].update(destId=5), "cycle"),
    (lambda d: d["edges"].append({"sourceId": 9, "destId": 5, "cost": 0}), "cycle"),
    (lambda d: d["edges"].append({"sourceId": 5, "destId": 9, "cost": 3}), "one output has one cost"),
    (lambda d: d["edges"][0].update(cost=-2), "cost is -2.0"),
    (lambda d: d["nodes"][0].update(isBackwardNode=1), "backward to a forward node"),
])
def test_says_what_is_wrong_in_one_line(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        parse_workload(broken(change), where="graph.json")
    assert str(caught.value).startswith("graph.json") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("", "truncated"), (json.dumps(GOOD)[:-20], "ends too early"), ("nodes", "is not JSON"),
    ("[1, 2]", "not a JSON object"), ('{"maxFPGAs": NaN}', "NaN"), ("[" * 100_000, "cannot be read"),
    ('{"maxFPGAs": 1e999}', "maxFPGAs: must be a whole"),
])
def test_other_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        parse_workload(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_workload(tmp_path / "absent.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="no UTF-8"):
        load_workload(tmp_path / "bytes.json")
