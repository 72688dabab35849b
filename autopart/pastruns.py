"""What runs of plans took, kept for the next plan of the same model; needs no torch."""

from __future__ import annotations

import platform
import warnings
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from autopart import cache
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan

__all__ = ["StageRun", "forget", "recall", "recall_plan", "remember"]

MOST_KEPT = 32
"""stages of one model and micro-batch size; the oldest go first"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """One stage as it ran: seconds of one micro-batch at the full speed and the pace of its kind's profile."""

    kind: str
    layers: tuple[str, ...]
    forward_seconds: float
    backward_seconds: float
    predicted_forward_seconds: float
    predicted_backward_seconds: float

    @property
    def ratio(self) -> float:
        """Measured / predicted, forward and backward together."""
        predicted = self.predicted_forward_seconds + self.predicted_backward_seconds
        return (self.forward_seconds + self.backward_seconds) / predicted if predicted > 0 else 1.0


_ADAPTER = TypeAdapter(tuple[StageRun, ...])


def remember(plan: Plan, measured: Measurement) -> None:
    """Keep what the stages of a run took.  Of two runs of the same layers on one kind the later counts.

    An emulated device's time is that of its kind at full speed; a machine that ran at another pace than when the layers
    were measured is allowed for.  Stages of several devices and those that recompute are left out.
    """
    new = []
    for run in measured.stages:
        stage = plan.stages[run.index]
        if len(stage.devices) > 1 or stage.recompute or run.forward_seconds <= 0:
            continue
        device = plan.cluster.device(stage.devices[0])
        factor = device.speed * (measured.pace or 1.0)
        new.append(
            StageRun(
                kind=device.kind, layers=stage.layers, forward_seconds=run.forward_seconds * factor,
                backward_seconds=run.backward_seconds * factor,
                predicted_forward_seconds=stage.forward_seconds * device.speed,
                predicted_backward_seconds=stage.backward_seconds * device.speed,
            )
        )  # fmt: skip
    taken = {(run.kind, run.layers) for run in new}
    key = _key_of(plan)
    older = [run for run in _read(key) if (run.kind, run.layers) not in taken]
    cache.write("runs", key, _ADAPTER.dump_json((*older, *new)[-MOST_KEPT:]))


def recall(fingerprint: str, *, training: bool, optimizer: str, batch_size: int) -> tuple[StageRun, ...]:
    """Stages of a model that ran on this machine with micro-batches of ``batch_size``, the latest last."""
    return _read(_key(fingerprint, training, optimizer, batch_size))


def recall_plan(plan: Plan) -> tuple[StageRun | None, ...]:
    """For each stage of a plan how it ran on this machine; None where it did not."""
    known = {(run.kind, run.layers): run for run in _read(_key_of(plan))}
    return tuple(known.get((plan.cluster.device(stage.devices[0]).kind, stage.layers)) for stage in plan.stages)


def forget(fingerprint: str, *, training: bool, optimizer: str, batch_size: int) -> None:
    """Drop what ``recall`` would give."""
    key = _key(fingerprint, training, optimizer, batch_size)
    if _read(key):
        cache.write("runs", key, _ADAPTER.dump_json(()))


def _key_of(plan: Plan) -> tuple[str, ...]:
    batch_size = plan.job.batch // plan.schedule.num_microbatches
    return _key(plan.model.fingerprint, plan.job.mode == "train", plan.job.optimizer, batch_size)


def _key(fingerprint: str, training: bool, optimizer: str, batch_size: int) -> tuple[str, ...]:
    return ("1", fingerprint, str(training), optimizer, str(batch_size), platform.node(), platform.machine())


def _read(key: tuple[str, ...]) -> tuple[StageRun, ...]:
    content = cache.read("runs", key)
    if content is None:
        return ()
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError:
        warnings.warn("runs kept by another version of autopart are not used", stacklevel=2)
        return ()
