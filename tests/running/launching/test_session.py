from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from autopart.errors import RunError, UsageError
from autopart.modelsource import load, with_batch
from autopart.progress import Progress
from autopart.running import RankResult, RankSpec, best_single_device, run
from autopart.running.launching import session
from autopart.schema import store
from autopart.schema.device import Cluster
from autopart.schema.plan import Baseline, Plan
from autopart.tracing import trace
from tests.running.handmade import make_plan
from tests.running.launching.test_summary import result

SOURCE = str(Path(__file__).parents[1] / "model.py")


def make_training_plan() -> Plan:
    """Of a process that has used autograd, as a program that trained something before: its ranks must not mind."""
    torch.autograd.backward(torch.zeros((), requires_grad=True))
    piece = with_batch(load(SOURCE), 2)
    graph = trace(piece.model, piece.args, training=True).graph
    return make_plan(
        graph, graph.legal_cuts[:1], num_microbatches=4, mode="train", schedule="1f1b", optimizer="sgd",
        speeds=(0.5, 1.0),
    )


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_a_plan_is_run_beside_the_unsplit_model(scratch: Path) -> None:
    told: list[tuple[str, int, int]] = []
    plan = make_training_plan()
    found = run(plan, SOURCE, steps=3, warmup=1, progress=lambda *each: told.append(each))
    assert len(found.step_seconds) == len(found.losses) == 3
    source = load(SOURCE)
    assert source.targets is not None
    optimizer = torch.optim.SGD(source.model.parameters())
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(source.model(*source.args), *source.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert found.losses == pytest.approx(losses[1:], rel=1e-5)
    assert found.single is not None and found.gain is not None
    assert found.single.device == "cpu:1", "the faster of the two"
    assert found.gain == pytest.approx(found.throughput_per_second / found.single.throughput_per_second - 1)
    assert found.alternating
    assert [stage.device for stage in found.stages] == ["cpu:0", "cpu:1"]
    computed = [(each.stage, each.kind, each.microbatch) for each in found.events if each.kind != "receive"]
    halves = [("forward", number) for number in range(4)] * 2  # the loss is a part of the last stage's forward
    for stage, kinds in enumerate((halves[:4], halves)):
        backwards = [("backward", number) for number in range(4)]
        assert sorted(each[1:] for each in computed if each[0] == stage and each[1] != "optimizer") == sorted(
            kinds + backwards
        )
    assert all(0 <= each.start_seconds < each.end_seconds < 1.1 * found.step_seconds[-1] for each in found.events)
    assert all(stage.forward_seconds > 0 and stage.backward_seconds > 0 for stage in found.stages)
    assert told[0] == ("running the plan", 0, 4) and ("running the plan", 4, 4) in told
    assert not list(scratch.iterdir()), "nothing is left behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise", r"^rank 1 \(cpu:1\) failed: IndexError: label 9 is out of range$"),
        ("kill", r"^rank 1 \(cpu:1\) was killed by SIGKILL; "),
    ],
)
def test_a_rank_that_dies_is_named_with_its_cause(
    fault: str, message: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPART_TEST_FAULT", fault)
    # The other rank would wait for the group's time-out; the test's own is shorter than that.
    with pytest.raises(RunError, match=message) as caught:
        run(make_training_plan(), SOURCE, steps=3, warmup=0, single=False, group_timeout_seconds=1800.0)
    if fault == "raise":
        assert "out_of_range" in caught.value.detail
        assert "site-packages" not in caught.value.detail
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_a_single_run_that_dies_does_not_hold_the_pipeline_up(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPART_TEST_FAULT", "unsplit")
    found = run(make_training_plan(), SOURCE, steps=3, warmup=1)
    assert len(found.step_seconds) == 3 and found.single is None and not found.alternating
    assert "RuntimeError: the unsplit model is broken" in found.single_skipped_because


def test_the_single_device_is_the_fastest_one_here() -> None:
    plan = make_training_plan()
    assert best_single_device(plan).name == "cpu:1"
    absent = dataclasses.replace(plan.cluster.devices[1], backend="absent", torch_device=None)
    partly = dataclasses.replace(plan, cluster=Cluster(devices=(plan.cluster.devices[0], absent)))
    assert best_single_device(partly).name == "cpu:0"
    with pytest.raises(RunError, match="cpu:1 is not in this machine"):
        run(partly, SOURCE)


def test_a_plan_of_no_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="--steps must be at least 1"):
        run(make_training_plan(), SOURCE, steps=0)


class FakeRanks:
    """Ranks that need no time; the single-device run fails if it is told to."""

    fault = ""
    specs: ClassVar[list[RankSpec]] = []

    def __init__(self, spec: RankSpec, *, num_threads: int, progress: Progress, what: str) -> None:
        self.specs.append(spec)
        self._spec = spec
        assert store.load_plan(spec.plan_path).stages

    def __enter__(self) -> FakeRanks:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def finish(self, beside: FakeRanks | None = None) -> tuple[RankResult, ...]:
        if self._spec.mode == "single" and self.fault:
            raise RunError(self.fault)
        return tuple(result(rank, (4.0, 4.0, 4.0), 1.0) for rank in range(len(self._spec.devices)))


@pytest.fixture
def fake_ranks(monkeypatch: pytest.MonkeyPatch) -> type[FakeRanks]:
    monkeypatch.setattr(FakeRanks, "fault", "")
    monkeypatch.setattr(FakeRanks, "specs", [])
    monkeypatch.setattr(session, "Ranks", FakeRanks)
    return FakeRanks


@pytest.mark.parametrize(
    ("fits", "fault", "reason"),
    [(False, "", "short by 2 GB"), (True, "rank 0 (cpu:1) was killed by SIGKILL", "was killed by SIGKILL")],
)
def test_why_there_is_no_single_run_is_said(fits: bool, fault: str, reason: str, fake_ranks: type[FakeRanks]) -> None:
    fake_ranks.fault = fault
    baseline = Baseline(
        name="single-device", description="", fits=fits, step_seconds=None, factor=None, reason="short by 2 GB"
    )
    found = run(dataclasses.replace(make_training_plan(), baselines=(baseline,)), SOURCE)
    assert found.single is None and found.gain is None and not found.alternating
    assert reason in found.single_skipped_because
    assert found.single_skipped_because in found.verdict
    assert len(fake_ranks.specs) == (2 if fits else 1)


def test_a_device_may_be_chosen_for_the_single_run(fake_ranks: type[FakeRanks]) -> None:
    assert run(make_training_plan(), SOURCE, single_device="cpu:0").single is not None
    assert [spec.devices for spec in fake_ranks.specs] == [("cpu:0", "cpu:1"), ("cpu:0",)]
    with pytest.raises(UsageError, match="no device 'cpu:7'"):
        run(make_training_plan(), SOURCE, single_device="cpu:7")
    assert run(make_training_plan(), SOURCE, single=False).single is None


def test_a_memory_cap_is_kept_whatever_the_warm_up(fake_ranks: type[FakeRanks]) -> None:
    plan = make_training_plan()
    first, *others = plan.cluster.devices
    capped = dataclasses.replace(first, uncapped_bytes=first.memory_bytes, memory_bytes=10**9)
    cluster = dataclasses.replace(plan.cluster, devices=(capped, *others))
    for each in (plan, dataclasses.replace(plan, cluster=cluster)):
        run(each, SOURCE, warmup=0, single=False)
    assert [spec.warmup for spec in fake_ranks.specs] == [0, 2]


@pytest.mark.parametrize("available_bytes", [10**15, 0])
def test_steps_alternate_where_memory_holds_both_runs(
    available_bytes: int, fake_ranks: type[FakeRanks], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "available_memory_bytes", lambda: available_bytes)
    found = run(make_training_plan(), SOURCE)
    assert found.alternating == (available_bytes > 0) and found.single is not None
    pipeline, alone = fake_ranks.specs
    assert pipeline.alternates_with == (alone.directory if available_bytes else None)
    assert alone.alternates_with == (pipeline.directory if available_bytes else None)
