"""Which weights several devices divide, as it is told to planning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autopart import profiling, sizes
from autopart.modelsource import Source
from autopart.program import Program
from autopart.schema.job import Job
from autopart.sharding import sharded_weights
from autopart.sharedweights import most_devices, with_most_devices
from autopart.tracecache import StaleTraceError, traced
from tests.running.groupmodels import MODELS, tokens_of


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("__main__.__file__", __file__, raising=False)  # a worker of pytest-xdist has none


def source() -> Source:
    return Source(model=MODELS["blocks"](), args=(tokens_of(4, 0),), kwargs={}, name="blocks", text="")


def test_a_weight_is_known_by_the_most_devices_that_divide_it() -> None:
    trace = traced(source(), training=True)
    known = most_devices(trace, 4)
    _, program = trace.live()
    for count in (2, 4):
        assert {name for name, most in known.items() if most >= count} == sharded_weights(program, count)
    assert set(most_devices(trace, 2).values()) == {1, 2}
    graph = with_most_devices(program.graph, known)
    assert {weight.name: weight.most_devices for weight in graph.weights} == known
    assert with_most_devices(program.graph, {}) is program.graph


def test_what_is_known_is_not_found_again() -> None:
    trace = traced(source(), training=True)
    known = most_devices(trace, 2)

    def live() -> tuple[Source, Program]:
        raise StaleTraceError("the model is not to be traced for it")

    assert most_devices(replace(trace, live=live), 2) == known
    with pytest.raises(StaleTraceError):
        most_devices(replace(trace, live=live), 4)


def test_every_candidate_is_told_where_devices_may_share_layers() -> None:
    cluster = profiling.read_cluster("2xt4")
    for tensor, expected in ((1, {None}), (2, {1, 2})):
        job = Job(batch=4, mode="train", optimizer="sgd", tensor_parallel=tensor)
        found, _, _ = sizes.candidates(
            source(), cluster, job, (), fresh=False, refresh=False, progress=lambda *_: None, may_derive=True
        )
        assert len(found) > 1
        for each in found:
            assert {weight.most_devices for weight in each.graph.weights} == expected
