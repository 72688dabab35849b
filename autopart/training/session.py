"""A training with processes of its own: started, watched, and after a failure started again on what is left."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autopart import running
from autopart.errors import InfeasibleError, RankError, UsageError
from autopart.progress import Progress, silent
from autopart.schema import store
from autopart.schema.plan import Plan
from autopart.schema.training import Recipe, Recovery, StepRecord, Training
from autopart.training import checkpoints, hosts, metrics
from autopart.training.part import check_plan
from autopart.training.records import TrainResult, TrainSpec, stop_path
from autopart.training.replanning import Replan, after_failure, for_straggler, replanner
from autopart.training.result import result_of
from autopart.training.stragglers import Straggler, Stragglers
from autopart.training.watching import Watch

__all__ = ["Elastic", "Order", "train"]

_WORTH_IT = 0.9
"""a new plan because of a slow device has to need less than that of the present step time"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elastic:
    """How far a training goes on after failures."""

    most_recoveries: int = 10
    returns: int = 0
    """how often a device whose rank died is taken to be still there, before it is left out"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be trained, on what, and where it is written down."""

    source: str
    """the model source as typed"""
    data: str
    """what ``--data`` takes"""
    recipe: Recipe
    checkpoint_directory: Path | None = None
    resume: bool = False
    metrics_file: Path | None = None
    """None: metrics.jsonl beside the checkpoints"""
    hang_seconds: float = 30.0
    """how long a step may take before the ranks are taken to stand still; see ``Watch``"""
    group_timeout_seconds: float = 600.0
    """after which torch gives up waiting for a rank"""
    prefetch: int | None = None
    """how many computations early receives are posted in a plan that is made after a failure; None: where it pays"""
    directory: Path | None = None
    """what relative paths in ``source`` and ``data`` start from; None: the working directory"""


def train(
    plan: Plan, order: Order, *, elastic: Elastic | None = None, progress: Progress = silent,
    told: Callable[[str], None] = lambda _: None, replan: Replan | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Training:  # fmt: skip
    """Trains a model by a plan, one process per device; under torchrun this process is one of them.

    Args:
        plan: for training, of the model that the order names; its devices must be here.
        order: what to do.
        elastic: go on after failures with what is left, from the latest checkpoint; None: stop.
        progress: told of every step.
        told: called with a line about every failure that the training goes on after.
        replan: makes plans for other devices; None: as ``autopart plan`` does.
        clock: seconds.

    Raises:
        UsageError: the plan is for inference, or the directory has checkpoints and nothing was said of resuming.
        RankError: a rank failed; the cause is that of the first.
        InfeasibleError: what is left after a failure cannot hold the model.
    """
    _check(plan, order, elastic)
    if hosts.is_rank():
        if elastic is not None:
            raise UsageError("--elastic starts the ranks itself; leave torchrun out, or give it --max-restarts instead")
        return hosts.train_as_rank(plan, order, progress)
    with tempfile.TemporaryDirectory(prefix="autopart-train-") as scratch:
        where = order.metrics_file or (order.checkpoint_directory or Path(scratch)) / "metrics.jsonl"
        where.parent.mkdir(parents=True, exist_ok=True)
        session = _Session(
            plan, order, elastic, Path(scratch), where.resolve(), progress, told,
            replan or replanner(order.source, order.directory or Path.cwd(), order.prefetch),
        )  # fmt: skip
        begin, start_seconds = session.step_reached(), clock()
        results = session.run()
        return result_of(
            session.plan, order.recipe, [each for each in metrics.read(where) if each.step > begin],
            resumed_from_step=begin, total_seconds=clock() - start_seconds, checkpoint=session.latest(),
            notes=tuple(dict.fromkeys((*session.notes, *(note for each in results for note in each.notes)))),
            versions=results[0].versions, recoveries=session.recoveries,
        )  # fmt: skip


class _Session:
    """The attempts of a training, one after the other."""

    def __init__(
        self, plan: Plan, order: Order, elastic: Elastic | None, scratch: Path, metrics_file: Path, progress: Progress,
        told: Callable[[str], None], replan: Replan,
    ) -> None:  # fmt: skip
        self.plan, self.recoveries, self.notes = plan, list[Recovery](), list[str]()
        self._order, self._elastic, self._scratch, self._metrics = order, elastic, scratch, metrics_file
        self._progress, self._told, self._replan = progress, told, replan
        self._deaths: dict[str, int] = {}
        self._slow: set[str] = set()
        self._better: tuple[Plan, str] | None = None

    def run(self) -> tuple[TrainResult, ...]:
        """Attempts until one is through."""
        while True:
            metrics.cut_after(self._metrics, self.step_reached())
            try:
                results = self._attempt(len(self.recoveries))
            except RankError as error:
                self._go_on(error)
                continue
            if not results[0].stopped or self._better is None:
                return results
            (plan, cause), self._better = self._better, None
            devices = ", ".join(running.process_devices(plan))
            self._recover(plan, cause, f"planned anew for {devices}", self.step_reached())

    def latest(self) -> Path | None:
        """The latest checkpoint."""
        directory = self._order.checkpoint_directory
        return checkpoints.latest(directory) if directory else None

    def step_reached(self) -> int:
        """The step of the latest checkpoint."""
        found = self.latest()
        return checkpoints.progress_of(found).step if found else 0

    def _attempt(self, number: int) -> tuple[TrainResult, ...]:
        order, plan = self._order, self.plan
        place = self._scratch / f"attempt{number}"
        place.mkdir()
        store.save_plan(plan, place / "plan.json")
        spec = TrainSpec(
            plan_path=str(place / "plan.json"), source=order.source,
            source_directory=str(order.directory or os.getcwd()), directory=str(place),
            devices=running.process_devices(plan), recipe=order.recipe, data=order.data,
            checkpoints=str(order.checkpoint_directory.resolve()) if order.checkpoint_directory else None,
            resume=order.resume or number > 0, metrics=str(self._metrics),
            group_timeout_seconds=order.group_timeout_seconds,
        )  # fmt: skip
        num_threads = max(plan.cluster.device(name).num_threads or 1 for name in spec.devices)
        watch = Watch(
            spec, hang_seconds=order.hang_seconds, progress=self._progress, noted=self._note_stragglers(place)
        )
        with running.Ranks(
            spec, num_threads=num_threads, progress=silent, what="training", module="autopart.training.rank"
        ) as ranks:
            ranks.wait(watch=watch)
        watch()  # the last steps
        return tuple(
            store.load(TrainResult, running.result_path(place, rank)) for rank in range(len(spec.devices))
        )

    def _go_on(self, error: RankError) -> None:
        """Changes the plan after a failure; raises it again where that does not help or was not asked for."""
        if self._elastic is None or len(self.recoveries) >= self._elastic.most_recoveries:
            raise error
        self._better = None
        reached = max((record.step for record in metrics.read(self._metrics)), default=0)
        self._deaths[error.device] = self._deaths.get(error.device, 0) + 1
        may_return = self._deaths[error.device] <= self._elastic.returns
        try:
            found = after_failure(self.plan, error, self._replan, may_return=may_return)
        except InfeasibleError as infeasible:
            raise InfeasibleError(f"{error}; nothing fits what is left: {infeasible}", detail=error.detail) from error
        if found is None:
            raise error
        self._recover(found[0], str(error), found[1], reached)

    def _recover(self, plan: Plan, cause: str, action: str, reached: int) -> None:
        self.plan = plan
        resumed = self.step_reached()
        self.recoveries.append(
            Recovery(
                cause=cause, action=action, failed_after_step=reached, resumed_from_step=resumed,
                devices=running.process_devices(plan), predicted_step_seconds=plan.prediction.step_seconds,
            )
        )
        self._told(f"{cause}: {action}; going on after step {resumed}")

    def _note_stragglers(self, place: Path) -> Callable[[StepRecord], None]:
        """Looks for slow devices; an elastic training is stopped if a plan that knows of them is faster."""
        seen = Stragglers(self.plan, accumulate=self._order.recipe.accumulate)

        def noted(record: StepRecord) -> None:
            found = seen.note(record)
            if found is None or stop_path(place).exists():
                return
            seen.forget()
            told = f"{found.device} computes at {found.speed:.2f} of its planned speed, measured by the others"
            if found.device not in self._slow:
                self._slow.add(found.device)
                self.notes.append(f"By step {record.step} {told}.")
            if self._elastic is not None and self._better_without(found, told):
                stop_path(place).touch()

        return noted

    def _better_without(self, straggler: Straggler, cause: str) -> bool:
        plan = for_straggler(self.plan, straggler, self._replan)
        expected_seconds = plan.prediction.step_seconds * straggler.pace * self._order.recipe.accumulate
        if expected_seconds > _WORTH_IT * straggler.step_seconds:
            return False
        self._better = (plan, cause)
        return True


def _check(plan: Plan, order: Order, elastic: Elastic | None) -> None:
    check_plan(plan)
    for process in range(len(running.process_devices(plan))):
        running.process_device(plan, process)
    directory = order.checkpoint_directory
    if elastic is not None and directory is None:
        raise UsageError("--elastic goes on from checkpoints; give --checkpoints DIR")
    if elastic is not None and order.recipe.checkpoint_every is None:
        raise UsageError("--elastic goes on from checkpoints; give --checkpoint-every N")
    found = checkpoints.latest(directory) if directory else None
    if found is not None and not order.resume:
        raise UsageError(f"{directory} has {found.name} already; add --resume to go on, or give another directory")
    if found is not None and checkpoints.progress_of(found).step >= order.recipe.steps:
        raise UsageError(f"{found} is of the last step already; give more --steps than {order.recipe.steps}")
