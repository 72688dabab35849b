from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.errors import DeviceError
from autopart.profiling import kind, profile, read_cluster
from autopart.program import Program
from autopart.schema.device import Cluster, Device
from autopart.tracing import trace


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))
    return tmp_path


class Clock:
    """Goes on by ``step`` whenever it is read; counts how often it was."""

    def __init__(self, step: float) -> None:
        self.readings = (step * index for index in itertools.count())
        self.num_readings = 0

    def __call__(self) -> float:
        self.num_readings += 1
        return next(self.readings)


def traced(width: int = 8) -> tuple[Program, tuple[torch.Tensor, ...]]:
    inputs = torch.rand(4, width)
    program = trace(nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 8)), (inputs,), training=False)
    return program, (inputs,)


def test_measured_here_and_estimated_elsewhere() -> None:
    program, inputs = traced()
    found = profile(program, inputs, read_cluster("cpu:0,cpu:1@0.5,t4"), clock=Clock(1.0))
    assert [(row.kind, row.origin) for row in found.kinds] == [("cpu-1t", "measured"), ("t4", "estimated")]
    assert found.origin == "mixed"
    assert found.kind("cpu-1t").forward_seconds == (1.0, 1.0)


def test_a_measurement_is_kept_until_refreshed_or_the_model_is_another() -> None:
    program, inputs = traced()
    cluster = read_cluster("cpu:0")
    first = profile(program, inputs, cluster, clock=Clock(1.0))
    unread = Clock(2.0)
    assert profile(program, inputs, cluster, clock=unread) == first
    assert unread.num_readings == 0
    assert profile(program, inputs, cluster, clock=Clock(2.0), refresh=True) != first
    other, other_inputs = traced(width=16)
    assert profile(other, other_inputs, cluster, clock=Clock(3.0)).kinds[0].forward_seconds == (3.0, 3.0)


def test_a_cache_entry_of_another_format_is_measured_anew(own_cache: Path) -> None:
    from autopart import cache
    from autopart.profiling.profiler import _key

    program, inputs = traced()
    cluster = read_cluster("cpu:0")
    cache.write("layers", _key(program.graph, cluster.devices[0], "none", 0), b'{"kind": "cpu-1t"}')
    with pytest.warns(UserWarning, match="another version of autopart"):
        found = profile(program, inputs, cluster, clock=Clock(1.0))
    assert found.kinds[0].forward_seconds == (1.0, 1.0)


def test_absent_device_of_unknown_kind_is_refused() -> None:
    program, inputs = traced()
    odd = Device(name="odd", kind="nobody-knows", node="n", memory_bytes=1, memory_origin="cap", backend="absent")
    with pytest.raises(DeviceError, match="nobody-knows"):
        profile(program, inputs, Cluster(devices=(odd,)))


def test_a_kind_without_units_for_the_models_half_type_is_timed_in_another() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).to(torch.bfloat16)
    inputs = (torch.rand(4, 8).to(torch.bfloat16),)
    program = trace(model, inputs, training=False)
    cluster = read_cluster("cpu:0,t4")
    (here, _) = cluster.devices
    lacking = replace(kind("t4"), name=here.kind)  # the kind of what is here, if it were one that lacks bfloat16
    cluster = replace(cluster, kinds=(lacking,))
    kept, found = (profile(program, inputs, cluster, clock=Clock(1.0), stage_dtype=way) for way in ("keep", "auto"))
    assert [(row.origin, row.dtype) for row in kept.kinds] == [("measured", ""), ("estimated", "")]
    assert [(row.origin, row.dtype) for row in found.kinds] == [("measured", "float16"), ("estimated", "float16")]
    again = profile(program, inputs, cluster, clock=Clock(3.0), stage_dtype="auto")
    assert again == found and found.kind("t4").computes_as == ()
