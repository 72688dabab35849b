"""A run of a plan from outside: its ranks, the unsplit model on one device, and the comparison."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from autopart.errors import RunError, UsageError
from autopart.progress import Progress, silent
from autopart.running.emulating.memorycap import cap_of
from autopart.running.launching.launch import Ranks, finish
from autopart.running.launching.records import RankResult, RankSpec, Throttle
from autopart.running.launching.summary import single_run, summarize
from autopart.running.memory import LiveMeter, available_memory_bytes
from autopart.running.mesh import check_groups, process_device, process_devices
from autopart.running.optimizers import check_optimizer
from autopart.schema import store
from autopart.schema.codec import CodecName
from autopart.schema.device import Device
from autopart.schema.measurement import Measurement, SingleRun
from autopart.schema.plan import Plan

__all__ = ["best_single_device", "run"]

Mode = Literal["pipeline", "single"]


def run(
    plan: Plan,
    source: str,
    *,
    steps: int = 10,
    warmup: int = 2,
    single: bool = True,
    single_device: str | None = None,
    layers: bool = False,
    seed: int = 0,
    directory: str | Path | None = None,
    group_timeout_seconds: float = 600.0,
    compress: CodecName | None = None,
    compress_gradients: Literal["none", "fp16", "bf16"] = "none",
    emulated: bool = False,
    throttle: Throttle = "sleep",
    progress: Progress = silent,
) -> Measurement:
    """Runs a plan, one process per stage, and beside it the unsplit model on one device.

    On the processor their steps alternate, so that a drift of the machine meets both alike; on CUDA devices, or where
    memory does not hold both, one run follows the other.

    Args:
        plan: of the model that ``source`` names; its devices must be here.
        source: the model source as typed, which every process loads for itself.
        steps: timed steps.
        warmup: steps before them that do not count; at least 2 where a memory cap is kept, which is in these.
        single: also run the unsplit model on one device, the whole batch at once.
        single_device: which of the plan's devices that is; None: ``best_single_device``.
        layers: also time the layers of every stage one by one, after the timed steps.
        seed: set in each process before it loads the model.
        directory: what relative paths in ``source`` are relative to; None: the working directory.
        group_timeout_seconds: after which torch gives up waiting for a rank that hangs.
        compress: a codec for what crosses from rank to rank, instead of what the plan says.
        compress_gradients: what the gradients of data-parallel replicas travel as.
        emulated: the plan's devices stand for others (``emulated_plan``): their memory caps and given links are kept.
        throttle: how devices whose speed is below 1 are made slow.
        progress: told of every step.

    Raises:
        UsageError: a count is out of range, or there is no such device.
        RunError: a device is not here, or a rank failed; the message is the one of the rank that failed first.
    """
    _check(plan, steps, warmup, single_device)
    if any(cap_of(plan.cluster.device(name), emulated=emulated) is not None for name in process_devices(plan)):
        warmup = max(warmup, LiveMeter.NUM_STEPS)
    with tempfile.TemporaryDirectory(prefix="autopart-run-") as scratch:
        spec = RankSpec(
            mode="pipeline", plan_path=str(Path(scratch) / "plan.json"), source=source,
            source_directory=str(directory or os.getcwd()), directory=scratch, devices=process_devices(plan),
            steps=steps, warmup=warmup, seed=seed, group_timeout_seconds=group_timeout_seconds, layers=layers,
            compress=compress, compress_gradients=compress_gradients, emulated=emulated, throttle=throttle,
        )  # fmt: skip
        store.save_plan(plan, spec.plan_path)
        why_not = _why_not_single(plan) if single else "it was not asked for"
        if why_not:
            return summarize(plan, finish(_ranks(plan, spec, progress)), None, why_not)
        return _beside_single(plan, spec, single_device or best_single_device(plan).name, progress)


def _beside_single(plan: Plan, spec: RankSpec, single_device: str, progress: Progress) -> Measurement:
    """The run of the plan and that of the unsplit model, in turn where that is possible."""
    alone = dataclasses.replace(spec, mode="single", devices=(single_device,))
    if not _may_alternate(plan, single_device):
        results = finish(_ranks(plan, spec, progress))
        return summarize(plan, results, *_single(plan, lambda: finish(_ranks(plan, alone, progress))))
    with _ranks(plan, spec, progress, "single") as pipeline, _ranks(plan, alone, progress, "pipeline") as unsplit:
        results = pipeline.finish(beside=unsplit)
        return summarize(plan, results, *_single(plan, unsplit.finish), alternating=True)


def _check(plan: Plan, steps: int, warmup: int, single_device: str | None) -> None:
    if steps < 1 or warmup < 0:
        raise UsageError(f"--steps must be at least 1 and --warmup at least 0, not {steps} and {warmup}")
    if single_device not in {None, *(device.name for device in plan.cluster.devices)}:
        raise UsageError(f"the plan's cluster has no device {single_device!r} to run the unsplit model on")
    check_groups(plan, training=plan.job.mode == "train")
    check_optimizer(plan)
    for number in range(len(process_devices(plan))):
        process_device(plan, number)


def _ranks(plan: Plan, spec: RankSpec, progress: Progress, beside: Mode | None = None) -> Ranks:
    """The ranks of a spec, in a directory of their mode's own."""
    place = Path(spec.directory) / spec.mode
    place.mkdir()
    others = None if beside is None else str(Path(spec.directory) / beside)
    num_threads = max(plan.cluster.device(name).num_threads or 1 for name in spec.devices)
    what = "running the plan" if spec.mode == "pipeline" else f"running it unsplit on {spec.devices[0]}"
    spec = dataclasses.replace(spec, directory=str(place), alternates_with=others)
    return Ranks(spec, num_threads=num_threads, progress=progress, what=what)


def best_single_device(plan: Plan) -> Device:
    """The fastest device of the plan's cluster that is here, in use or not: cuda before cpu, then threads x speed.

    Raises:
        RunError: none is here.
    """
    here = [device for device in plan.cluster.devices if device.torch_device is not None]
    if not here:
        raise RunError("none of the plan's devices is in this machine; plan for --devices auto")
    return max(here, key=lambda device: (device.backend == "cuda", (device.num_threads or 1) * device.speed))


def _why_not_single(plan: Plan) -> str:
    known = next((baseline for baseline in plan.baselines if baseline.name == "single-device"), None)
    return f"no single device holds the model ({known.reason})" if known is not None and not known.fits else ""


def _may_alternate(plan: Plan, single_device: str) -> bool:
    """Whether the unsplit model runs on this machine's processor and its memory holds that and the pipeline at once.

    Every rank has the whole model until it has dropped the other stages' weights.  A CUDA device neither drifts as
    shared processors do nor has room to spare.
    """
    if plan.cluster.device(single_device).backend != "cpu":
        return False
    whole_model_bytes = sum(stage.parameter_bytes for stage in plan.stages)
    needed_bytes = (1 + len(plan.stages)) * whole_model_bytes + 2 * sum(stage.peak_bytes for stage in plan.stages)
    return needed_bytes < available_memory_bytes()


def _single(plan: Plan, results: Callable[[], tuple[RankResult, ...]]) -> tuple[SingleRun | None, str]:
    """The single-device run, or why there is none."""
    try:
        (result,) = results()
    except RunError as error:  # the run of the plan succeeded and is worth reporting; the failure is in the report
        return None, f"the unsplit model failed: {error}"
    return single_run(result, plan.job.batch), ""
