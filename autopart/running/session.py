"""A run of a plan from outside: its ranks, then the unsplit model on one device, then the comparison."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from autopart.errors import RunError, UsageError
from autopart.progress import Progress, silent
from autopart.running.launch import launch
from autopart.running.records import RankSpec
from autopart.running.stages import stage_device
from autopart.running.summary import single_run, summarize
from autopart.schema import store
from autopart.schema.device import Device
from autopart.schema.measurement import Measurement, SingleRun
from autopart.schema.plan import Plan

__all__ = ["best_single_device", "run"]


def run(
    plan: Plan,
    source: str,
    *,
    steps: int = 10,
    warmup: int = 2,
    single: bool = True,
    single_device: str | None = None,
    seed: int = 0,
    directory: str | Path | None = None,
    group_timeout_seconds: float = 600.0,
    progress: Progress = silent,
) -> Measurement:
    """Runs a plan, one process per stage, and the unsplit model on one device after it.

    Args:
        plan: of the model that ``source`` names; its devices must be here.
        source: the model source as typed, which every process loads for itself.
        steps: timed steps.
        warmup: steps before them that do not count.
        single: also run the unsplit model on one device, the whole batch at once.
        single_device: which of the plan's devices that is; None: ``best_single_device``.
        seed: set in each process before it loads the model.
        directory: what relative paths in ``source`` are relative to; None: the working directory.
        group_timeout_seconds: after which torch gives up waiting for a rank that hangs.
        progress: told of every step.

    Raises:
        UsageError: a count is out of range, or there is no such device.
        RunError: a device is not here, or a rank failed; the message is the one of the rank that failed first.
    """
    if steps < 1 or warmup < 0:
        raise UsageError(f"--steps must be at least 1 and --warmup at least 0, not {steps} and {warmup}")
    if single_device not in {None, *(device.name for device in plan.cluster.devices)}:
        raise UsageError(f"the plan's cluster has no device {single_device!r} to run the unsplit model on")
    for stage in plan.stages:
        stage_device(plan, stage.index)
    with tempfile.TemporaryDirectory(prefix="autopart-run-") as scratch:
        store.save_plan(plan, Path(scratch) / "plan.json")

        def spec(name: str, devices: tuple[str, ...]) -> RankSpec:
            (Path(scratch) / name).mkdir()
            return RankSpec(
                mode="single" if name == "single" else "pipeline",
                plan_path=str(Path(scratch) / "plan.json"),
                source=source,
                source_directory=str(directory or os.getcwd()),
                directory=str(Path(scratch) / name),
                devices=devices,
                steps=steps,
                warmup=warmup,
                seed=seed,
                group_timeout_seconds=group_timeout_seconds,
            )

        devices = tuple(stage.devices[0] for stage in plan.stages)
        ranks = spec("pipeline", devices)
        results = launch(ranks, num_threads=_num_threads(plan, devices), progress=progress, what="running the plan")
        alone, reason = None, "it was not asked for"
        if single:
            device = single_device or best_single_device(plan).name
            alone, reason = _single(plan, spec("single", (device,)), progress)
    return summarize(plan, results, alone, reason)


def best_single_device(plan: Plan) -> Device:
    """The fastest device of the plan's cluster that is here, in use or not: cuda before cpu, then threads x speed.

    Raises:
        RunError: none is here.
    """
    here = [device for device in plan.cluster.devices if device.torch_device is not None]
    if not here:
        raise RunError("none of the plan's devices is in this machine; plan for --devices auto")
    return max(here, key=lambda device: (device.backend == "cuda", (device.num_threads or 1) * device.speed))


def _single(plan: Plan, spec: RankSpec, progress: Progress) -> tuple[SingleRun | None, str]:
    """The single-device run, or why there is none."""
    known = next((baseline for baseline in plan.baselines if baseline.name == "single-device"), None)
    if known is not None and not known.fits:
        return None, f"no single device holds the model ({known.reason})"
    (device,) = spec.devices
    threads = _num_threads(plan, spec.devices)
    try:
        (result,) = launch(spec, num_threads=threads, progress=progress, what=f"running it unsplit on {device}")
    except RunError as error:  # the run of the plan succeeded and is worth reporting; the failure is in the report
        return None, f"the unsplit model failed on {device}: {error}"
    return single_run(result, plan.job.batch), ""


def _num_threads(plan: Plan, devices: tuple[str, ...]) -> int:
    return max(plan.cluster.device(name).num_threads or 1 for name in devices)
