"""After failures: stragglers, new plans, and the session's attempts, with ranks and planner that need no time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from autopart import modelsource, running, verbs
from autopart.errors import InfeasibleError, OutOfMemoryError, RankError, UsageError
from autopart.schema import store
from autopart.schema.device import Cluster
from autopart.schema.plan import Plan
from autopart.schema.training import Progress, Recipe, Training
from autopart.training import Elastic, Order, checkpoints, train
from autopart.training.checkpoints import Entries
from autopart.training.metrics import append
from autopart.training.records import TrainResult, TrainSpec, stop_path
from autopart.training.replanning import after_failure, for_straggler, replanner
from autopart.training.stragglers import Straggler, Stragglers
from tests.running.handmade import make_plan
from tests.training.models import plan_of, program_of, seeded
from tests.training.test_metrics import record

PROGRAM = program_of(seeded("chain"))
PLAN = plan_of(PROGRAM, 2)


def replanned(plan: Plan, cluster: Cluster) -> Plan:
    """One stage on the roomiest device."""
    if sum(device.memory_bytes for device in cluster.devices) < 100:
        raise InfeasibleError("nothing fits")
    one = make_plan(PROGRAM.graph, (), num_microbatches=4, mode="train", schedule="1f1b", optimizer="adamw")
    device = max(cluster.devices, key=lambda each: each.memory_bytes * each.speed)
    stage = dataclasses.replace(one.stages[0], devices=(device.name,))
    return dataclasses.replace(one, stages=(stage,), cluster=dataclasses.replace(cluster, devices=(device,)))


@pytest.mark.parametrize("fate", ["killed", "ended", "hung", "lost"])
def test_a_device_that_is_gone_is_left_out(fate: str) -> None:
    found = after_failure(PLAN, RankError("", device="cpu:1", fate=fate), replanned)
    assert found is not None and found[0].devices_by_rank == ("cpu:0",)
    assert found[1] == "cpu:1 is left out; planned for cpu:0"
    again = after_failure(found[0], RankError("", device="cpu:0", fate=fate), replanned)
    assert again == (found[0], "cpu:0 is the only device and is tried again")
    assert after_failure(PLAN, RankError("", device="cpu:1", fate=fate), replanned, may_return=True) == (
        PLAN, "cpu:1 is tried again"
    )  # fmt: skip


def test_a_device_out_of_memory_gets_less_to_do() -> None:
    asked: list[Cluster] = []

    def replan(plan: Plan, cluster: Cluster) -> Plan:
        asked.append(cluster)
        return replanned(plan, cluster)

    needs = dataclasses.replace(PLAN.stages[1].memory, parameters=1000)
    stage = dataclasses.replace(PLAN.stages[1], memory=needs, peak_bytes=1000)
    plan = dataclasses.replace(PLAN, stages=(PLAN.stages[0], stage))
    found = after_failure(plan, OutOfMemoryError("", device="cpu:1", fate="memory"), replan)
    assert found is not None and "800 B for cpu:1" in found[1]
    assert [device.memory_bytes for device in asked[0].devices] == [2**40, 800]


def test_a_lost_link_changes_nothing_and_other_failures_are_the_users() -> None:
    assert after_failure(PLAN, RankError("", fate="link"), replanned) == (PLAN, "the same plan is tried again")
    for fate in ("raised", "disk", "unstarted"):
        assert after_failure(PLAN, RankError("", device="cpu:0", fate=fate), replanned) is None


@pytest.mark.parametrize("prefetch", [3, 0])
def test_a_new_plan_posts_receives_as_early_as_the_first(
    prefetch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def plan_source(*_: object, microbatches: int | None, **words: object) -> Plan:
        asked.append(microbatches)
        if microbatches is not None:
            raise InfeasibleError("not with so many")
        return PLAN

    monkeypatch.setattr(modelsource, "load", lambda *_, **__: None)
    monkeypatch.setattr(verbs, "plan_source", plan_source)
    found = replanner("m.py", tmp_path, prefetch)(PLAN, PLAN.cluster)
    assert found.schedule.prefetch == prefetch and asked == [4, None]


def timed(seconds: float) -> Plan:
    stages = tuple(dataclasses.replace(each, forward_seconds=seconds, backward_seconds=seconds) for each in PLAN.stages)
    return dataclasses.replace(PLAN, stages=stages)


def test_a_straggler_is_slow_against_the_others_not_against_the_clock() -> None:
    seen = Stragglers(timed(1.0), accumulate=2, window=3)  # 4 micro-batches x 2 batches x 2 s = 16 s
    assert [seen.note(record(step, busy_seconds=(48.0, 50.0))) for step in range(6)] == [None] * 6
    found = [seen.note(record(step, seconds=9.0, busy_seconds=(32.0, 96.0))) for step in range(3)]
    assert found[:1] == [None] and found[2] == Straggler(device="cpu:1", speed=1 / 3, step_seconds=9.0, pace=2.0)
    seen.forget()
    assert seen.note(record(1, busy_seconds=(32.0, 96.0))) is None


def test_a_straggler_is_planned_slower_and_runs_at_its_own_speed() -> None:
    asked: list[Cluster] = []

    def replan(plan: Plan, cluster: Cluster) -> Plan:
        asked.append(cluster)
        return dataclasses.replace(plan, cluster=cluster)

    found = for_straggler(PLAN, Straggler(device="cpu:1", speed=0.25, step_seconds=1.0, pace=1.0), replan)
    assert [device.speed for device in asked[0].devices] == [1.0, 0.25]
    assert [device.speed for device in found.cluster.devices] == [1.0, 1.0]


class FakeRanks:
    """Ranks that train in no time, from the latest checkpoint to the step that the script has for the attempt."""

    script: ClassVar[list[tuple[int, Callable[[TrainSpec], RankError | None]]]] = []
    slow = False
    specs: ClassVar[list[TrainSpec]] = []

    def __init__(self, spec: TrainSpec, **_: Any) -> None:
        self.spec = spec
        self.specs.append(spec)

    def __enter__(self) -> FakeRanks:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, watch: Callable[[], None]) -> None:
        last, end = self.script[len(self.specs) - 1]
        spec, directory = self.spec, Path(self.spec.checkpoints or "")
        assert spec.resume or checkpoints.latest(directory) is None
        plan = store.load_plan(spec.plan_path)
        start = checkpoints.latest(directory)
        for step in range(checkpoints.progress_of(start).step + 1 if start else 1, last + 1):
            busy = (1.0, 50.0 if self.slow else 1.0)[: len(plan.devices_by_rank)]
            append(Path(spec.metrics), record(step, seconds=60.0, busy_seconds=busy))
            watch()
            stopped = stop_path(spec.directory).exists()
            if step % (spec.recipe.checkpoint_every or last) == 0 or stopped:
                save(directory, step)
            if stopped:
                break
        error = end(spec)
        if error is not None:
            raise error
        for rank in range(len(spec.devices)):
            done = TrainResult(rank=rank, stopped=stop_path(spec.directory).exists(), notes=(), versions=("torch",))
            store.save(done, running.result_path(spec.directory, rank))


def save(directory: Path, step: int) -> None:
    progress = Progress(step=step, samples=step, fingerprint="", optimizer="adamw", data="")
    entries = Entries(model={"a": torch.ones(1)}, optimizer={})
    checkpoints.save(directory, entries, progress, rank=0, num_ranks=1, keep=2)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(running, "Ranks", FakeRanks)
    monkeypatch.setattr(FakeRanks, "script", [])
    monkeypatch.setattr(FakeRanks, "specs", [])
    monkeypatch.setattr(FakeRanks, "slow", False)
    return FakeRanks.script


def killed(spec: TrainSpec) -> RankError:
    return RankError("rank 1 (cpu:1) was killed", device=spec.devices[-1], fate="killed")


def fine(spec: TrainSpec) -> None:
    return None


def order(tmp_path: Path, **words: Any) -> Order:
    recipe = Recipe(steps=20, optimizer="adamw", checkpoint_every=4)
    plain = Order(source="m.py", data="m.py:data", recipe=recipe, checkpoint_directory=tmp_path / "kept")
    return dataclasses.replace(plain, **words)


def run(tmp_path: Path, elastic: Elastic | None = None, plan: Plan = PLAN, **words: Any) -> Training:
    return train(plan, order(tmp_path, **words), elastic=elastic, replan=replanned)


def test_after_a_kill_it_goes_on_from_the_checkpoint_and_every_step_counts_once(
    script: list[Any], tmp_path: Path
) -> None:
    script += [(10, killed), (20, fine)]
    found = run(tmp_path, Elastic())
    assert len(found.losses) == 20 and found.steps == 20 and found.resumed_from_step == 0
    (recovery,) = found.recoveries
    assert (recovery.failed_after_step, recovery.resumed_from_step, recovery.devices) == (10, 8, ("cpu:0",))
    assert [spec.devices for spec in FakeRanks.specs] == [("cpu:0", "cpu:1"), ("cpu:0",)]
    lines = (tmp_path / "kept" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 20
    assert found.checkpoint is not None and found.checkpoint.endswith("step-00000020")


def test_without_elastic_the_cause_is_raised_and_later_resumed(script: list[Any], tmp_path: Path) -> None:
    script += [(10, killed), (20, fine)]
    with pytest.raises(RankError, match="was killed"):
        run(tmp_path)
    with pytest.raises(UsageError, match="step-00000008 already; add --resume"):
        run(tmp_path)
    found = run(tmp_path, resume=True)
    assert found.resumed_from_step == 8 and len(found.losses) == 12 and not found.recoveries
    with pytest.raises(UsageError, match="is of the last step already"):
        run(tmp_path, resume=True)


def test_a_device_may_return_before_it_is_left_out_and_there_is_an_end(script: list[Any], tmp_path: Path) -> None:
    script += [(2, killed), (6, killed), (9, killed)]
    with pytest.raises(RankError, match="was killed"):
        run(tmp_path, Elastic(returns=1, most_recoveries=2))
    assert [spec.devices for spec in FakeRanks.specs] == [("cpu:0", "cpu:1"), ("cpu:0", "cpu:1"), ("cpu:0",)]


def test_what_is_left_may_be_too_small(script: list[Any], tmp_path: Path) -> None:
    small = dataclasses.replace(PLAN.cluster.devices[0], memory_bytes=50)
    plan = dataclasses.replace(PLAN, cluster=Cluster(devices=(small, PLAN.cluster.devices[1])))
    script += [(10, killed)]
    with pytest.raises(InfeasibleError, match=r"was killed; nothing fits what is left: nothing fits"):
        run(tmp_path, Elastic(), plan)


@pytest.mark.parametrize("elastic", [Elastic(), None])
def test_a_straggler_is_told_and_planned_away(elastic: Elastic | None, script: list[Any], tmp_path: Path) -> None:
    FakeRanks.slow = True
    script += [(20, fine), (20, fine)]
    found = run(tmp_path, elastic, timed(0.5))
    assert found.notes == ("By step 10 cpu:1 computes at 0.02 of its planned speed, measured by the others.",)
    assert len(found.losses) == 20
    if elastic is None:
        assert not found.recoveries and len(FakeRanks.specs) == 1
    else:
        (recovery,) = found.recoveries
        assert recovery.resumed_from_step == recovery.failed_after_step == 10
        assert recovery.action == "planned anew for cpu:0"


@pytest.mark.parametrize(
    ("words", "elastic", "message"),
    [
        ({"checkpoint_directory": None}, Elastic(), "give --checkpoints DIR"),
        ({"recipe": Recipe(steps=2, optimizer="sgd")}, Elastic(), "give --checkpoint-every N"),
    ],
)
def test_orders_that_make_no_sense_are_refused(
    words: dict[str, Any], elastic: Elastic, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run(tmp_path, elastic, **words)
    infers = dataclasses.replace(PLAN, job=dataclasses.replace(PLAN.job, mode="infer", optimizer="none"))
    with pytest.raises(UsageError, match="plan with --mode train"):
        run(tmp_path, plan=infers)
