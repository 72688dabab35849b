from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.profiling import Budget, profile, read_cluster
from autopart.profiling.devices.catalogue import kind
from autopart.profiling.estimating.estimate import estimate
from autopart.profiling.measuring.timeboxed import shares
from autopart.program import Program
from autopart.schema.profile import KindProfile
from autopart.tracing import trace


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPART_CACHE", str(tmp_path))


def ticking() -> Callable[[], float]:
    """A clock that goes on by one second whenever it is read."""
    count = itertools.count()
    return lambda: float(next(count))


def slow(step: float) -> Callable[[], float]:
    tick = ticking()
    return lambda: step * tick()


def net() -> nn.Module:
    """Four layers of three sorts: 0, then twice the widest, then 3."""
    return nn.Sequential(nn.Linear(64, 512), nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 128))


def traced(*, training: bool = False) -> tuple[Program, tuple[torch.Tensor, ...]]:
    batch = torch.rand(6, 64)
    program = trace(net(), (batch,), training=training)
    return program, (batch,)


def boxed(
    program: Program, inputs: tuple[torch.Tensor, ...], num_layers: int, optimizer: str = "none",
    clock: Callable[[], float] | None = None,
) -> KindProfile:  # fmt: skip
    """The profile when there is time for so many layers alone, and for nothing more."""
    time = iter([0.0] * (1 + num_layers))
    budget = Budget(1.0, clock=lambda: next(time, 2.0))
    clock = clock or ticking()
    return profile(program, inputs, read_cluster("cpu:0"), optimizer=optimizer, budget=budget, clock=clock).kinds[0]


def test_shares_add_up_and_equal_layers_count_together() -> None:
    program, _ = traced()
    guess = estimate(program.graph, kind("cpu-generic-16c-avx2"), training=False, optimizer="none")
    found = shares(program, guess)
    wide = program.graph.layers[1].signature
    assert sum(found.values()) == pytest.approx(1)
    assert len(found) == 3 and next(iter(found)) == wide == program.graph.layers[2].signature
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_most_important_layer_is_measured_first_and_the_rest_scaled() -> None:
    program, inputs = traced()
    row = boxed(program, inputs, 1)
    guess = estimate(program.graph, kind("cpu-generic-16c-avx2"), training=False, optimizer="none")
    assert row.unmeasured == (0, 3)
    assert row.forward_seconds[1] == row.forward_seconds[2] == 1.0
    scale = 2.0 / (guess.forward_seconds[1] + guess.forward_seconds[2])
    assert row.forward_seconds[0] == pytest.approx(guess.forward_seconds[0] * scale)
    assert "1 of 3 different layers measured" in row.basis and "cpu-generic-16c-avx2" in row.basis


def test_the_next_call_goes_on_where_the_last_one_ended() -> None:
    program, inputs = traced()
    assert boxed(program, inputs, 2).unmeasured == (0,)
    later = ticking()
    row = boxed(program, inputs, 1, clock=lambda: 10 * later())
    assert row.unmeasured == ()
    assert row.forward_seconds == (10.0, 1.0, 1.0, 1.0)


def test_a_killed_call_is_gone_on_with() -> None:
    program, inputs = traced()

    def killing() -> Callable[[], float]:
        """A clock that dies within the second layer: the first takes eight readings, two for each of four runs."""
        tick = ticking()

        def read() -> float:
            now = tick()
            if now >= 9:
                raise KeyboardInterrupt
            return now

        return read

    with pytest.raises(KeyboardInterrupt):
        boxed(program, inputs, 9, clock=killing())
    later = ticking()
    row = boxed(program, inputs, 1, clock=lambda: 10 * later())
    assert row.forward_seconds[1:] == (1.0, 1.0, 10.0), "the widest is kept from the call that was killed"
    assert row.unmeasured == (0,)


def test_with_time_left_the_whole_model_is_run() -> None:
    program, inputs = traced()
    budget = Budget(1e9, clock=lambda: 0.0)
    row = profile(program, inputs, read_cluster("cpu:0"), budget=budget, clock=ticking()).kinds[0]
    assert row.unmeasured == () and "runs of the whole model" in row.basis


def test_a_whole_profile_needs_no_budget_any_more() -> None:
    program, inputs = traced()
    first = profile(program, inputs, read_cluster("cpu:0"), clock=ticking()).kinds[0]
    assert boxed(program, inputs, 1, clock=lambda: pytest.fail("measured again")) == first


def test_runs_of_the_whole_model_survive_a_kill() -> None:
    program, inputs = traced()

    def dying(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(program, inputs, read_cluster("cpu:0"), clock=slow(0.01), progress=dying)
    row = profile(program, inputs, read_cluster("cpu:0"), clock=slow(100.0)).kinds[0]
    assert "median of 3 runs" in row.basis
    assert row.forward_seconds[0] == row.forward_seconds[3] == pytest.approx(0.01), "two of three runs are the old ones"
    assert "median of 2 runs" in profile(
        program, inputs, read_cluster("cpu:0"), clock=slow(100.0), refresh=True
    ).kinds[0].basis


def test_training_measures_backward_and_the_update_and_leaves_the_model_alone() -> None:
    program, inputs = traced(training=True)
    before = {name: tensor.clone() for name, tensor in program.module.state_dict().items()}
    row = boxed(program, inputs, 9, optimizer="adamw")
    assert row.unmeasured == ()
    assert set(row.backward_seconds) == set(row.forward_seconds) == set(row.optimizer_seconds) == {1.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.module.state_dict().items())
    assert all(parameter.grad is None for parameter in program.module.parameters())


def test_a_layer_that_cannot_run_alone_is_estimated_and_said() -> None:
    program, inputs = traced()
    with pytest.warns(UserWarning) as caught, pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise RuntimeError("not with made-up inputs\nsecond line")

        patch.setattr("autopart.profiling.measuring.timeboxed.layer_alone", refuse)
        row = boxed(program, inputs, 9)
    assert "cannot be measured alone (not with made-up inputs)" in str(caught[0].message)
    assert row.unmeasured == tuple(range(len(program.graph.layers)))
