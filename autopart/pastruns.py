"""What runs of plans took, kept for the next plan of the same model; needs no torch.

A run teaches only if the machine was as when the layers were measured and had nothing else to do: what a busy machine
takes would make every later plan wrong.  Of several runs of the same layers the medians count.
"""

from __future__ import annotations

import platform
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError

from autopart import cache
from autopart.schema.measurement import Measurement, StageMeasurement
from autopart.schema.plan import Plan, Stage

__all__ = ["StageRun", "forget", "recall", "recall_plan", "remember", "run_as"]

MOST_KEPT = 64
"""stages of one model and micro-batch size; the oldest go first"""

MOST_OF_A_STAGE = 7
"""runs of the same layers on one kind that are kept"""

PACE_TOLERANCE = 0.1
"""a run at another pace than that of the layers' measurement teaches nothing"""

SPREAD_TOLERANCE = 0.5
"""(slowest - fastest) / median of the timed steps, the slowest left out where there are four or more"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """One stage as it ran: seconds of one micro-batch at the full speed of its kind."""

    kind: str
    layers: tuple[str, ...]
    forward_seconds: float
    backward_seconds: float
    predicted_forward_seconds: float
    predicted_backward_seconds: float
    layer_seconds: tuple[float, ...] = ()
    """forward of each layer, taken one by one after the steps; empty if not taken"""
    predicted_layer_seconds: tuple[float, ...] = ()
    num_runs: int = 1
    """whose medians these are"""

    @property
    def ratio(self) -> float:
        """Measured / predicted, forward and backward together."""
        predicted = self.predicted_forward_seconds + self.predicted_backward_seconds
        return (self.forward_seconds + self.backward_seconds) / predicted if predicted > 0 else 1.0


_ADAPTER = TypeAdapter(tuple[StageRun, ...])


def remember(plan: Plan, measured: Measurement) -> str:
    """Keep what the stages of a run took, unless it was disturbed; a sentence about what the next plan learns.

    An emulated device's time is that of its kind at full speed; the pace, within its tolerance, is allowed for.  Stages
    of several devices and those that recompute are left out.
    """
    if why := _disturbed(measured):
        return f"The next plan learns nothing of this run: {why}."
    new = [
        _stage_run(plan, plan.stages[run.index], run, measured) for run in measured.stages
        if len(plan.stages[run.index].devices) == 1 and not plan.stages[run.index].recompute and run.forward_seconds > 0
    ]  # fmt: skip
    if not new:
        return "The next plan learns nothing of this run: its stages recompute, or several devices share them."
    key = _key_of(plan)
    cache.write("runs", key, _ADAPTER.dump_json(_kept((*_read(key), *new))))
    return (
        f"The next plan of this model with micro-batches of {_batch_size(plan)} uses what {len(new)} of "
        f"{len(plan.stages)} stages took."
    )


def _disturbed(measured: Measurement) -> str:
    """Why a run says nothing about the next; empty if it does."""
    if measured.pace is not None and abs(measured.pace - 1) > PACE_TOLERANCE:
        return f"the machine ran at {measured.pace:.2f} of the pace it had when the layers were measured"
    if measured.core_share < 1 - PACE_TOLERANCE:
        return f"other processes were busy, so it had {measured.core_share:.0%} of its core"
    steps = sorted(measured.step_seconds)
    steps = steps[:-1] if len(steps) >= 4 else steps
    spread = (steps[-1] - steps[0]) / measured.median_step_seconds
    return f"its steps differ by {spread:.0%}" if spread > SPREAD_TOLERANCE else ""


def run_as(kind: str, dtype: str) -> str:
    """What runs are told apart by: the kind, with the type of the stage if that is not the model's."""
    return f"{kind} in {dtype}" if dtype else kind


def _stage_run(plan: Plan, stage: Stage, run: StageMeasurement, measured: Measurement) -> StageRun:
    device = plan.cluster.device(stage.devices[0])
    factor = device.speed * (measured.pace or 1.0)
    trains = plan.job.mode == "train"
    return StageRun(
        kind=run_as(device.kind, stage.dtype), layers=stage.layers, forward_seconds=run.forward_seconds * factor,
        backward_seconds=run.backward_seconds * factor if trains else 0.0,
        predicted_forward_seconds=stage.forward_seconds * device.speed,
        predicted_backward_seconds=stage.backward_seconds * device.speed,
        layer_seconds=tuple(each * factor for each in run.layer_seconds),
        predicted_layer_seconds=tuple(each * device.speed for each in stage.layer_seconds),
    )  # fmt: skip


def _kept(runs: Sequence[StageRun]) -> tuple[StageRun, ...]:
    """The latest few of every stage."""
    left: list[StageRun] = []
    for run in reversed(runs):
        if sum((other.kind, other.layers) == (run.kind, run.layers) for other in left) < MOST_OF_A_STAGE:
            left.append(run)
    return tuple(left[:MOST_KEPT][::-1])


def recall(fingerprint: str, *, training: bool, optimizer: str, batch_size: int) -> tuple[StageRun, ...]:
    """Stages of a model that ran on this machine with micro-batches of ``batch_size``, each as medians of its runs.

    Those of the most runs come last, of as many the latest.
    """
    return _together(_read(_key(fingerprint, training, optimizer, batch_size)))


def recall_plan(plan: Plan) -> tuple[StageRun | None, ...]:
    """For each stage of a plan how it ran on this machine; None where it did not."""
    known = {(run.kind, run.layers): run for run in _together(_read(_key_of(plan)))}
    kinds = (run_as(plan.cluster.device(stage.devices[0]).kind, stage.dtype) for stage in plan.stages)
    return tuple(known.get((kind, stage.layers)) for kind, stage in zip(kinds, plan.stages, strict=True))


def _together(runs: Sequence[StageRun]) -> tuple[StageRun, ...]:
    stages: dict[tuple[str, tuple[str, ...]], list[StageRun]] = {}
    for run in runs:
        same = stages.pop((run.kind, run.layers), [])  # the stage that ran last comes last
        stages[run.kind, run.layers] = [*same, run]
    return tuple(sorted((_median(some) for some in stages.values()), key=lambda run: run.num_runs))


def _median(runs: Sequence[StageRun]) -> StageRun:
    """Of runs of one stage; what was predicted is that of the last."""
    layered = [run.layer_seconds for run in runs if run.layer_seconds]
    return replace(
        runs[-1], num_runs=len(runs),
        forward_seconds=statistics.median(run.forward_seconds for run in runs),
        backward_seconds=statistics.median(run.backward_seconds for run in runs),
        layer_seconds=tuple(statistics.median(column) for column in zip(*layered, strict=True)),
    )  # fmt: skip


def forget(fingerprint: str, *, training: bool, optimizer: str, batch_size: int) -> None:
    """Drop what ``recall`` would give."""
    key = _key(fingerprint, training, optimizer, batch_size)
    if _read(key):
        cache.write("runs", key, _ADAPTER.dump_json(()))


def _key_of(plan: Plan) -> tuple[str, ...]:
    return _key(plan.model.fingerprint, plan.job.mode == "train", plan.job.optimizer, _batch_size(plan))


def _batch_size(plan: Plan) -> int:
    """Samples of a micro-batch."""
    return plan.job.batch // plan.schedule.num_microbatches


def _key(fingerprint: str, training: bool, optimizer: str, batch_size: int) -> tuple[str, ...]:
    return ("2", fingerprint, str(training), optimizer, str(batch_size), platform.node(), platform.machine())


def _read(key: tuple[str, ...]) -> tuple[StageRun, ...]:
    content = cache.read("runs", key)
    if content is None:
        return ()
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError:
        warnings.warn("runs kept by another version of autopart are not used", stacklevel=2)
        return ()
