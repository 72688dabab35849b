from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart import cache, pastruns
from autopart.pastruns import StageRun
from autopart.profiling import profile, read_cluster
from autopart.profiling.learning import learned
from autopart.schema.graph import Graph
from autopart.schema.profile import KindProfile
from autopart.tracing import trace


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))


def a_graph() -> Graph:
    """Layers 0, 1 and 2."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    return trace(model, (torch.rand(2, 64),), training=False).graph


def a_row(*seconds: float) -> KindProfile:
    zeros = (0.0,) * len(seconds)
    return KindProfile(
        kind="cpu-1t", origin="measured", basis="here", forward_seconds=seconds, backward_seconds=zeros,
        optimizer_seconds=zeros, spread=zeros,
    )  # fmt: skip


def a_run(*layers: str, forward: float, kind: str = "cpu-1t", num_runs: int = 3) -> StageRun:
    return StageRun(
        kind=kind, layers=layers, forward_seconds=forward, backward_seconds=0.0, predicted_forward_seconds=forward,
        predicted_backward_seconds=0.0, num_runs=num_runs,
    )


def test_the_layers_of_a_stage_add_up_to_what_it_took() -> None:
    row = learned(a_row(1.0, 3.0, 5.0), a_graph(), [a_run("0", "1", forward=5.0)])
    assert row.forward_seconds == (1.25, 3.75, 5.0)
    assert row.basis.endswith("2 of 3 layers scaled to what runs took (x1.25 to x1.25, median of 3 runs)")


def test_the_last_run_of_a_layer_counts() -> None:
    runs = [a_run("0", "1", "2", forward=18.0), a_run("0", forward=0.5)]
    assert learned(a_row(1.0, 3.0, 5.0), a_graph(), runs).forward_seconds == (0.5, 6.0, 10.0)


def test_other_kinds_and_unknown_layers_teach_nothing() -> None:
    row = a_row(1.0, 3.0, 5.0)
    assert learned(row, a_graph(), [a_run("0", forward=2.0, kind="t4"), a_run("x", "0", forward=9.0)]) is row


@pytest.mark.parametrize(("num_runs", "most"), [(1, 1.25), (2, 1.5), (3, 2.0), (7, 2.0)])
def test_the_fewer_runs_the_less_they_change(num_runs: int, most: float) -> None:
    runs = [a_run("0", forward=100.0, num_runs=num_runs), a_run("1", forward=1e-9, num_runs=num_runs)]
    row = learned(a_row(1.0, 3.0, 5.0), a_graph(), runs)
    assert row.forward_seconds == pytest.approx((most, 3 / most, 5.0))
    assert "held back, since they took x0.00 to x100.00" in row.basis


def test_runs_of_the_same_stage_taken_together_are_believed_more() -> None:
    graph, row = a_graph(), a_row(1.0, 3.0, 5.0)
    seconds = [learned(row, graph, [a_run("0", forward=1.4, num_runs=num)]).forward_seconds[0] for num in (1, 2)]
    assert seconds == pytest.approx([1.25, 1.4])


def test_a_profile_uses_what_ran_and_says_so_until_it_is_refreshed() -> None:
    model, inputs = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), torch.rand(2, 64)
    program = trace(model, (inputs,), training=False)
    ticks = itertools.count()
    cluster = read_cluster("cpu:0")

    def found(*, refresh: bool = False) -> KindProfile:
        return profile(
            program, (inputs,), cluster, clock=lambda: float(next(ticks)), refresh=refresh
        ).kinds[0]

    assert found().forward_seconds == (1.0, 1.0)
    key = pastruns._key(program.graph.fingerprint, False, "none", 2)
    cache.write("runs", key, pastruns._ADAPTER.dump_json((a_run("1", forward=1.2, num_runs=1),)))
    for _ in range(2):  # the runs are not applied to themselves
        assert found().forward_seconds == (1.0, 1.2)
        assert "scaled to what runs took" in found().basis
    assert found(refresh=True).forward_seconds == (1.0, 1.0)
    assert found().forward_seconds == (1.0, 1.0)
