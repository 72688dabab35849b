"""The verbs.  Each hands data from room to room: tracing, profiling, planning, splitting, running."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autopart import modelsource, planning, profiling, running, splitting, tracing
from autopart.candidates import microbatch_counts, preferred_count
from autopart.errors import UsageError
from autopart.modelsource import Source, with_batch
from autopart.modelsource import load as load_source
from autopart.profiling import devices_here, kind, kinds
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan, PlanWarning
from autopart.schema.problem import Candidate
from autopart.schema.profile import Profile
from autopart.schema.verification import Verification
from autopart.splitting import SplitModule, StagePlacement

__all__ = [
    "devices_here",
    "kind",
    "kinds",
    "load_source",
    "pipeline",
    "plan",
    "plan_source",
    "profile_source",
    "run_source",
    "split",
    "trace",
    "verify",
    "verify_source",
]

DeviceSpec = str | Sequence[str] | Cluster | None
LARGE_GRAPH = 3000
"""operators above which one micro-batch size is traced instead of several"""


def trace(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    training: bool = False, name: str = "",
) -> Program:  # fmt: skip
    """The model as layers with their costs; nothing is allocated, the model is left as it was.

    Raises:
        TracingError: the model cannot be captured.
    """
    return tracing.trace(model, args, kwargs, training=training, name=name)


def profile_source(
    source: Source, *, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, progress: Progress = silent, mode: str = "infer", optimizer: str = "none",
) -> Profile:  # fmt: skip
    """The time of every layer for the source's whole batch, on every kind of device in the list."""
    cluster = profiling.read_cluster(devices, max_memory=max_memory, cluster_file=cluster_file)
    program = _trace_source(source, training=mode == "train")
    return _profile(program, source, cluster, optimizer=optimizer, refresh=refresh, progress=progress)


def plan_source(
    source: Source, *, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, progress: Progress = silent, **words: Any,
) -> Plan:  # fmt: skip
    """The fastest plan for a model source; the job's words are those of the command line, with underscores.

    Raises:
        UsageError: a word is wrong.
        TracingError: the model cannot be captured.
        InfeasibleError: no plan fits.
    """
    batch = words.pop("batch", None) or modelsource.batch_of(source)
    source = with_batch(source, batch)
    try:
        job = Job(batch=batch, **words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}; see `autopart plan --help`") from error
    cluster = profiling.read_cluster(devices, max_memory=max_memory, cluster_file=cluster_file)
    cluster = profiling.measure_links(cluster, progress=progress, refresh=refresh)
    candidates, warnings = _candidates(source, cluster, job, refresh=refresh, progress=progress)
    found = planning.plan(candidates, cluster, job, progress=progress)
    warnings += _batch_statistics(source.model, found)
    return dataclasses.replace(found, warnings=(*found.warnings, *warnings))


def plan(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, progress: Progress = silent, **words: Any,
) -> Plan:  # fmt: skip
    """The fastest plan that fits, with its proof; see ``plan_source`` for the words and errors.

    >>> layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> found = plan(layers, (torch.rand(8, 64),), devices="2xt4")
    >>> sum(len(stage.layers) for stage in found.stages)
    2
    """
    return plan_source(
        _source(model, args, kwargs), devices=devices, max_memory=max_memory, cluster_file=cluster_file,
        refresh=refresh, progress=progress, **words,
    )  # fmt: skip


def split(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan | None = None, devices: DeviceSpec = None, **words: Any,
) -> SplitModule:  # fmt: skip
    """The model over several devices as an ``nn.Module``: the same call, the same ``state_dict``.

    Its parameters are the model's own objects, moved to their devices in place as ``model.to`` would.
    """
    if plan is None:
        plan = globals()["plan"](model, args, kwargs, devices=devices, **words)
    _same_model(plan, model)
    return SplitModule(model, splitting.stage_placements(plan), _tracer)


def pipeline(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan, loss_fn: Callable[..., torch.Tensor] | None = None, optimizer: str | None = None,
) -> running.LocalPipeline | running.DistributedPipeline:  # fmt: skip
    """What steps a plan: one rank of it under torchrun, else all of it in this process.

    ``args`` and ``kwargs`` are of a whole batch; ``step`` takes the same.
    """
    _same_model(plan, model)
    piece = with_batch(_source(model, args, kwargs), plan.job.batch // plan.schedule.num_microbatches)
    program = _trace_source(piece, training=plan.job.mode == "train")
    return running.pipeline(program, plan, loss_fn=loss_fn, optimizer=optimizer)


def verify_source(plan: Plan, source: Source, *, progress: Progress = silent) -> Verification:
    """Compare the plan's split of a model source with the unsplit model, on one micro-batch.

    Outputs, in training every gradient, and buffers; and, on fake tensors, that every operator's tensors are on one
    device.  Devices of the plan that are not here are stood in for by the processor.

    Raises:
        MismatchError: something differs; names the first layer that does.
        UsageError: the plan is of another model, or the model has no weights to compute with.
    """
    _same_model(plan, source.model)
    source = with_batch(source, plan.job.batch // plan.schedule.num_microbatches)
    training = plan.job.mode == "train"
    progress("verifying", 0, 3)
    program = _trace_source(source, training=training)
    stages = tuple(
        StagePlacement(
            layers=stage.layers, device=torch.device(plan.cluster.device(stage.devices[0]).torch_device or "cpu")
        )
        for stage in plan.stages
    )
    boundaries = [placement.first for placement in splitting.placements_for(program, stages)[1:]]
    splitting.check_devices(program, boundaries, backward=training)
    progress("verifying", 1, 3)
    if any(tensor.is_meta for tensor in source.model.state_dict().values()):
        raise UsageError(
            f"{source.name} has no weights, so outputs cannot be compared; its devices were checked on fake tensors"
        )
    with tracing.training_mode(source.model, training):
        split_model = SplitModule(source.model, stages, _tracer)
        splitting.verify(
            split_model, source.model, source.args, source.kwargs, loss_fn=source.loss_fn, targets=source.targets or ()
        )
    progress("verifying", 3, 3)
    gradients = ("every parameter's gradient",) if training else ()
    return Verification(
        model=plan.model.name, mode=plan.job.mode, num_stages=len(plan.stages), batch=program.graph.batch_size,
        equal=("outputs", *gradients, "buffers", "devices of every operator's tensors, on fake tensors"),
    )  # fmt: skip


def verify(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan, loss_fn: Callable[..., torch.Tensor] | None = None, targets: tuple[Any, ...] | None = None,
) -> Verification:  # fmt: skip
    """Compare a plan's split of the model with the unsplit model; see ``verify_source``."""
    source = dataclasses.replace(_source(model, args, kwargs), loss_fn=loss_fn, targets=targets)
    return verify_source(plan, source)


def run_source(
    plan: Plan, source_text: str, *, steps: int = 5, warmup: int = 2, single: bool = True, progress: Progress = silent
) -> Measurement:
    """Run a plan, one process per stage, and the unsplit model on one device beside it.

    Raises:
        UsageError: a device of the plan is not here, or the plan is of another model.
        RunError: a rank failed.
    """
    splitting.stage_placements(plan)
    _same_model(plan, modelsource.load(source_text, dtype=plan.job.dtype).model)
    return running.run(plan, source_text, steps=steps, warmup=warmup, single=single, progress=progress)


def _candidates(
    source: Source, cluster: Cluster, job: Job, *, refresh: bool, progress: Progress
) -> tuple[tuple[Candidate, ...], tuple[PlanWarning, ...]]:
    """The model at every micro-batch size that is worth a look; with a warning if there should be more."""
    num_devices = len(cluster.devices)
    first = job.microbatches or (1 if job.objective == "latency" else preferred_count(job.batch, num_devices))
    wanted = {first, 1} if job.microbatches or job.objective == "latency" else set(
        microbatch_counts(job.batch, num_devices)
    ) | {first}
    found: list[Candidate] = []
    warnings: tuple[PlanWarning, ...] = ()
    for done, count in enumerate([first, *sorted(wanted - {first})]):
        progress("tracing", done, len(wanted))
        piece = with_batch(source, job.batch // count)
        program = _trace_source(piece, training=job.mode == "train")
        profile = _profile(
            program, piece, cluster, optimizer=job.optimizer, at_once=count > 1, refresh=refresh, progress=progress
        )
        found.append(Candidate(num_microbatches=count, graph=program.graph, profile=profile))
        if len(program.captured.graph.nodes) > LARGE_GRAPH and len(wanted) > 1:
            warnings = _one_size_only(job, count)
            break
    progress("tracing", len(wanted), len(wanted))
    return tuple(sorted(found, key=lambda each: each.num_microbatches)), warnings


def _one_size_only(job: Job, count: int) -> tuple[PlanWarning, ...]:
    if job.microbatches:
        return ()
    return (
        PlanWarning(
            code="one-microbatch-count",
            message=f"the model is large, so only {count} micro-batches were tried",
            suggestion="give --microbatches N to try another count",
        ),
    )


def _profile(program: Program, source: Source, cluster: Cluster, **options: Any) -> Profile:
    return profiling.profile(program, program.flatten_inputs(source.args, source.kwargs), cluster, **options)


def _trace_source(source: Source, *, training: bool) -> Program:
    return tracing.trace(source.model, source.args, source.kwargs, training=training, name=source.name)


def _tracer(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Program:
    return tracing.trace(model, args, kwargs, training=training)


def _source(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Source:
    return Source(model=model, args=args, kwargs=dict(kwargs or {}), name=type(model).__name__, text="")


def _same_model(plan: Plan, model: nn.Module) -> None:
    found = tracing.fingerprint(model)
    if found != plan.model.fingerprint:
        raise UsageError(
            f"the plan is for another model: its fingerprint is {plan.model.fingerprint} ({plan.model.name}), "
            f"this model's is {found}; plan this model"
        )


def _batch_statistics(model: nn.Module, found: Plan) -> tuple[PlanWarning, ...]:
    """Batch normalisation sees a micro-batch where it saw a batch: a change of the training, so it is said."""
    micro = found.job.batch // found.schedule.num_microbatches
    has = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if found.job.mode != "train" or micro == found.job.batch or not has:
        return ()
    return (
        PlanWarning(
            code="batch-statistics",
            message=f"batch normalisation takes its statistics from {micro} samples, not from {found.job.batch}",
            suggestion="give --microbatches 1, or use group or layer normalisation",
        ),
    )


