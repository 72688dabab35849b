"""The verbs for a model source, in the order of the path: trace, profile, plan with checks, verify, run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autopart import modelsource, planning, profiling, running, splitting, tracing
from autopart.candidates import microbatch_counts, preferred_count
from autopart.errors import MismatchError, UsageError
from autopart.modelsource import Source, with_batch
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.schema.device import Cluster
from autopart.schema.graph import Note
from autopart.schema.job import Job
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Check, Plan, PlanWarning
from autopart.schema.problem import Candidate
from autopart.schema.profile import Profile
from autopart.schema.verification import Verification
from autopart.splitting import StagePlacement, Tracer

__all__ = [
    "DeviceSpec", "check_source", "plan_source", "profile_source", "run_source", "same_model", "trace_source",
    "tracer_for", "verify_source",
]  # fmt: skip

DeviceSpec = str | Sequence[str] | Cluster | None
LARGE_GRAPH = 3000
"""operators above which one micro-batch size is traced instead of several"""
MOST_DEMOTIONS = 3
"""after as many mismatches the whole model is one layer"""


def trace_source(source: Source, *, training: bool, opaque: Sequence[str] = ()) -> Program:
    """The source's model as layers with their costs."""
    return tracing.trace(
        source.model, source.args, source.kwargs, training=training, name=source.name, opaque=opaque
    )


def profile_source(
    source: Source, *, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, progress: Progress = silent, mode: str = "infer", optimizer: str = "none",
) -> Profile:  # fmt: skip
    """The time of every layer for the source's whole batch, on every kind of device in the list."""
    cluster = profiling.read_cluster(devices, max_memory=max_memory, cluster_file=cluster_file)
    program = trace_source(source, training=mode == "train")
    return _profile(program, source, cluster, optimizer=optimizer, refresh=refresh, progress=progress)


def plan_source(
    source: Source, *, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, verify: bool = True, progress: Progress = silent, **words: Any,
) -> Plan:  # fmt: skip
    """The fastest plan for a model source; the job's words are those of the command line, with underscores.

    Unless ``verify`` is False its split is compared with the unsplit model, as far as memory and time allow, and
    ``Plan.checks`` says what came out.  Where it differs, the module at fault is planned as one layer that runs as it
    is written.

    Raises:
        UsageError: a word is wrong.
        TracingError: the model cannot be captured.
        InfeasibleError: no plan fits.
        MismatchError: the model, even as one layer, does not do what it does unsplit.
    """
    batch = words.pop("batch", None) or modelsource.batch_of(source)
    source = with_batch(source, batch)
    try:
        job = Job(batch=batch, **words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}; see `autopart plan --help`") from error
    cluster = profiling.read_cluster(devices, max_memory=max_memory, cluster_file=cluster_file)
    cluster = profiling.measure_links(cluster, progress=progress, refresh=refresh)
    opaque: tuple[str, ...] = ()
    failed: tuple[MismatchError, ...] = ()
    while True:
        found, program = _plan_once(source, cluster, job, opaque, refresh=refresh, progress=progress)
        if not verify:
            return found
        try:
            checks = _checked(found, program, source, opaque, progress)
        except MismatchError as error:
            if "" in opaque:
                raise
            failed = (*failed, error)
            opaque = _demoted(program, opaque, error)
        else:
            return dataclasses.replace(
                found, checks=checks, warnings=(*found.warnings, *(_demotion(each) for each in failed))
            )


def check_source(plan: Plan, source: Source, stages: Sequence[StagePlacement]) -> tuple[Check, ...]:
    """Compare the plan's split of a source, on devices that are here, with the unsplit model, where that is not long.

    Raises:
        MismatchError: something differs.
    """
    training, opaque = plan.job.mode == "train", plan.model.opaque
    with tracing.training_mode(source.model, training):
        program = trace_source(source, training=training, opaque=opaque)
        return splitting.check_split(source, program, stages, tracer_for(opaque))


def verify_source(plan: Plan, source: Source, *, progress: Progress = silent) -> Verification:
    """Compare the plan's split of a model source with the unsplit model, on one micro-batch, however long it takes.

    Outputs, in training every gradient, and buffers; and, on fake tensors, that every operator's tensors are on one
    device.  Devices of the plan that are not here are stood in for by the processor.

    Raises:
        MismatchError: something differs; names the first layer that does.
        UsageError: the plan is of another model, or the model has no weights to compute with.
    """
    same_model(plan, source.model)
    source = with_batch(source, plan.job.batch // plan.schedule.num_microbatches)
    training, opaque = plan.job.mode == "train", plan.model.opaque
    progress("verifying", 0, 2)
    program = trace_source(source, training=training, opaque=opaque)
    stages = tuple(
        StagePlacement(
            layers=stage.layers, device=torch.device(plan.cluster.device(stage.devices[0]).torch_device or "cpu")
        )
        for stage in plan.stages
    )
    progress("verifying", 1, 2)
    with tracing.training_mode(source.model, training):
        checks = splitting.check_split(
            source, program, stages, tracer_for(opaque), max_flops=float("inf"), anew=True
        )
    progress("verifying", 2, 2)
    values = next(each for each in checks if each.name == "values")
    if values.outcome != "passed":
        raise UsageError(
            f"{source.name}: values cannot be compared: {values.detail}; "
            + "; ".join(f"{each.name} {each.outcome}" for each in checks if each is not values)
        )
    return Verification(
        model=plan.model.name, mode=plan.job.mode, num_stages=len(plan.stages), batch=program.graph.batch_size,
        equal=tuple(each.detail for each in checks if each.outcome == "passed"), checks=checks,
    )  # fmt: skip


def run_source(
    plan: Plan, source_text: str, *, steps: int = 5, warmup: int = 2, single: bool = True, progress: Progress = silent
) -> Measurement:
    """Run a plan, one process per stage, and the unsplit model on one device beside it.

    Raises:
        UsageError: a device of the plan is not here, or the plan is of another model.
        RunError: a rank failed.
    """
    splitting.stage_placements(plan)
    same_model(plan, modelsource.load(source_text, dtype=plan.job.dtype).model)
    return running.run(plan, source_text, steps=steps, warmup=warmup, single=single, progress=progress)


def tracer_for(opaque: Sequence[str]) -> Tracer:
    """What traces a plan's model for other calls than the planned one."""

    def tracer(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Program:
        return tracing.trace(model, args, kwargs, training=training, opaque=opaque)

    return tracer


def same_model(plan: Plan, model: nn.Module) -> None:
    """Raise UsageError if the plan is of another model."""
    found = tracing.fingerprint(model)
    if found != plan.model.fingerprint:
        raise UsageError(
            f"the plan is for another model: its fingerprint is {plan.model.fingerprint} ({plan.model.name}), "
            f"this model's is {found}; plan this model"
        )


def _plan_once(
    source: Source, cluster: Cluster, job: Job, opaque: tuple[str, ...], *, refresh: bool, progress: Progress
) -> tuple[Plan, Program]:
    """The plan, unchecked, and the program that it is of."""
    candidates, programs, warnings = _candidates(source, cluster, job, opaque, refresh=refresh, progress=progress)
    found = planning.plan(candidates, cluster, job, progress=progress)
    program = programs[found.schedule.num_microbatches]
    return dataclasses.replace(
        found,
        model=dataclasses.replace(found.model, tracer=program.graph.tracer, opaque=opaque),
        warnings=(
            *found.warnings, *warnings, *_batch_statistics(source.model, found), *map(_noted, program.graph.notes)
        ),
    ), program  # fmt: skip


def _checked(
    found: Plan, program: Program, source: Source, opaque: tuple[str, ...], progress: Progress
) -> tuple[Check, ...]:
    """The checks of a plan, all its stages standing where the model's weights are, so that nothing is moved."""
    progress("verifying", 0, 1)
    piece = with_batch(source, program.graph.batch_size)
    stages = tuple(StagePlacement(layers=stage.layers, device=program.device) for stage in found.stages)
    with tracing.training_mode(source.model, program.graph.training):
        checks = splitting.check_split(piece, program, stages, tracer_for(opaque))
    progress("verifying", 1, 1)
    return checks


def _demoted(program: Program, opaque: tuple[str, ...], error: MismatchError) -> tuple[str, ...]:
    """What is not to be looked into next: the module whose output differs, at last the whole model."""
    path = error.layer.partition("@")[0]
    known = dict(program.module.named_modules())
    if not path or path not in known or path in opaque or len(opaque) >= MOST_DEMOTIONS:
        return ("",)
    return (*(each for each in opaque if not each.startswith(path + ".")), path)


def _demotion(error: MismatchError) -> PlanWarning:
    what = f"{error.layer} is planned as one layer" if error.layer else "the whole model is planned as one layer"
    return PlanWarning(
        code="mismatch", message=f"what was traced is not what the model does: {error}",
        suggestion=f"{what} that runs as it is written; state and random numbers of Python in it may be the cause",
    )


def _noted(note: Note) -> PlanWarning:
    where = f"{note.where}: " if note.where else ""
    return PlanWarning(code=note.code, message=where + note.message, suggestion=note.suggestion or "nothing to do")


def _candidates(
    source: Source, cluster: Cluster, job: Job, opaque: Sequence[str], *, refresh: bool, progress: Progress
) -> tuple[tuple[Candidate, ...], dict[int, Program], tuple[PlanWarning, ...]]:
    """The model at every micro-batch size that is worth a look, with its program; a warning if there should be more."""
    num_devices = len(cluster.devices)
    first = job.microbatches or (1 if job.objective == "latency" else preferred_count(job.batch, num_devices))
    wanted = {first, 1} if job.microbatches or job.objective == "latency" else set(
        microbatch_counts(job.batch, num_devices)
    ) | {first}
    found: list[Candidate] = []
    programs: dict[int, Program] = {}
    warnings: tuple[PlanWarning, ...] = ()
    for done, count in enumerate([first, *sorted(wanted - {first})]):
        progress("tracing", done, len(wanted))
        piece = with_batch(source, job.batch // count)
        programs[count] = program = trace_source(piece, training=job.mode == "train", opaque=opaque)
        profile = _profile(
            program, piece, cluster, optimizer=job.optimizer, at_once=count > 1, refresh=refresh, progress=progress
        )
        found.append(Candidate(num_microbatches=count, graph=program.graph, profile=profile))
        if len(program.captured.graph.nodes) > LARGE_GRAPH and len(wanted) > 1:
            warnings = _one_size_only(job, count)
            break
    progress("tracing", len(wanted), len(wanted))
    return tuple(sorted(found, key=lambda each: each.num_microbatches)), programs, warnings


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


