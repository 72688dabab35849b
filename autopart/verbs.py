"""The verbs for a model source, in the order of the path: trace, profile, plan with checks, verify."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autopart import modelsource, profiling, splitting
from autopart.advising import advised
from autopart.errors import MismatchError, UsageError
from autopart.generating import plan_generation
from autopart.keying import fingerprint
from autopart.modelsource import Source, with_batch
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.restoring import training_mode
from autopart.schema.device import Cluster
from autopart.schema.graph import Note
from autopart.schema.job import Job, usual_optimizer
from autopart.schema.plan import Check, Plan, PlanWarning
from autopart.schema.problem import Candidate
from autopart.schema.profile import Profile
from autopart.schema.verification import Verification
from autopart.sizes import candidates, planned, profiled
from autopart.splitting import StagePlacement, Tracer
from autopart.tracecache import StaleTraceError, Traced, trace_source, traced

__all__ = [
    "DeviceSpec", "check_source", "demoted", "plan_source", "profile_source", "same_model",
    "trace_source", "tracer_for", "verify_source",
]  # fmt: skip

DeviceSpec = str | Sequence[str] | Cluster | None
MOST_DEMOTIONS = 6
"""after as many mismatches the whole model is one layer"""


def profile_source(
    source: Source, *, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, progress: Progress = silent, mode: str = "infer", optimizer: str | None = None,
    budget_seconds: float | None = None, reserve: Sequence[str] = (),
) -> Profile:  # fmt: skip
    """The time of every layer for the source's whole batch, on every kind of device in the list.

    In training with the optimizer's (None: adamw).  With a budget the most important layers are measured first, and
    those that there is no time for are estimated.
    """
    cluster = profiling.read_cluster(
        devices, max_memory=max_memory, reserve=reserve, cluster_file=cluster_file,
        folder=modelsource.folder_of(source),
    )
    budget = None if budget_seconds is None else profiling.Budget(budget_seconds)
    return profiled(
        traced(source, training=mode == "train"), cluster, refresh=refresh, progress=progress, budget=budget,
        optimizer=optimizer or usual_optimizer(mode),
    )  # fmt: skip


def plan_source(
    source: Source, *, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, verify: bool = True, progress: Progress = silent, budget_seconds: float | None = None,
    reserve: Sequence[str] = (), advice: bool = False, **words: Any,
) -> Plan:  # fmt: skip
    """The fastest plan for a model source; the job's words are those of the command line, with underscores.

    In training the optimizer is adamw, as there, unless one is named; optimizer="none" plans for gradients alone.
    With a budget measuring at all micro-batch sizes together takes no longer: the most important layers are measured
    first, and those that there is no time for are estimated.  ``reserve`` is memory that is left to others.

    Unless ``verify`` is False its split is compared with the unsplit model, as far as memory and time allow, and
    ``Plan.checks`` says what came out.  Where it differs, the module at fault is planned as one layer that runs as it
    is written.

    With ``advice`` the plan says what would make it better, and what would change it (``advising``).

    With the word mode="generate" text is generated: see ``generating.plan_generation`` for its words.

    Raises:
        UsageError: a word is wrong.
        TracingError: the model cannot be captured.
        InfeasibleError: no plan fits.
        MismatchError: the model, even as one layer, does not do what it does unsplit.
    """
    if words.get("mode") == "generate":
        cluster = profiling.read_cluster(
            devices, max_memory=max_memory, reserve=reserve, cluster_file=cluster_file,
            folder=modelsource.folder_of(source),
        )
        cluster = profiling.measure_links(cluster, progress=progress, refresh=refresh)
        return plan_generation(source, cluster, words, progress=progress, advice=advice)
    batch = words.pop("batch", None) or modelsource.batch_of(source)
    source = with_batch(source, batch)
    words["optimizer"] = words.get("optimizer") or usual_optimizer(words.get("mode", "infer"))
    try:
        job = Job(batch=batch, **words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}; see `autopart plan --help`") from error
    cluster = profiling.read_cluster(
        devices, max_memory=max_memory, reserve=reserve, cluster_file=cluster_file,
        folder=modelsource.folder_of(source),
    )
    cluster = profiling.measure_links(cluster, progress=progress, refresh=refresh)
    find = functools.partial(
        _found, source, cluster, job, verify=verify, refresh=refresh, progress=progress,
        advice=advice, budget=None if budget_seconds is None else profiling.Budget(budget_seconds),
    )
    try:
        return find(fresh=False)
    except StaleTraceError:
        return find(fresh=True)


def _found(
    source: Source, cluster: Cluster, job: Job, *, fresh: bool, verify: bool, refresh: bool, progress: Progress,
    budget: profiling.Budget | None, advice: bool,
) -> Plan:  # fmt: skip
    """The plan; what is found not to be what the model does is looked into less and less."""
    opaque: tuple[str, ...] = ()
    failed: tuple[MismatchError, ...] = ()
    while True:
        found, chosen, choice = _plan_once(
            source, cluster, job, opaque, fresh=fresh, refresh=refresh, progress=progress, budget=budget
        )
        if not verify:
            return advised(found, choice, progress=progress) if advice else found
        try:
            checks = _checked(found, chosen, opaque, progress)
        except MismatchError as error:
            if any(stage.dtype for stage in found.stages):  # the type is to blame, not the trace
                raise MismatchError(f"{error}; plan with --stage-dtype keep") from error
            if "" in opaque:
                raise
            failed = (*failed, error)
            opaque = demoted(chosen.source.model, opaque, error)
        else:
            found = dataclasses.replace(
                found, checks=checks, warnings=(*found.warnings, *(_demotion(each) for each in failed))
            )
            return advised(found, choice, progress=progress) if advice else found


def check_source(plan: Plan, source: Source, stages: Sequence[StagePlacement]) -> tuple[Check, ...]:
    """Compare the plan's split of a source, on devices that are here, with the unsplit model, where that is not long.

    Raises:
        MismatchError: something differs.
    """
    opaque = plan.model.opaque
    try:
        return _checks(traced(source, training=plan.job.mode == "train", opaque=opaque), stages, opaque)
    except StaleTraceError:
        fresh = traced(source, training=plan.job.mode == "train", opaque=opaque, fresh=True)
        return _checks(fresh, stages, opaque)


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
            layers=stage.layers, device=torch.device(plan.cluster.device(stage.devices[0]).torch_device or "cpu"),
            dtype=stage.dtype,
        )
        for stage in plan.stages
    )
    progress("verifying", 1, 2)
    with training_mode(source.model, training):
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


def tracer_for(opaque: Sequence[str]) -> Tracer:
    """What traces a plan's model for other calls than the planned one."""
    def tracer(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> Program:
        from autopart import tracing  # slow to import, and a plan from caches traces nothing

        return tracing.trace(model, args, kwargs, training=training, opaque=opaque)

    return tracer


def same_model(plan: Plan, model: nn.Module) -> None:
    """Raise UsageError if the plan is of another model, or priced and not to be run."""
    if plan.generation is not None:
        raise UsageError(
            "a plan for generating text is priced, not run; export it (autopart export PLAN --to vllm), or plan "
            "--mode infer"
        )
    found = fingerprint(model)
    if found != plan.model.fingerprint:
        raise UsageError(
            f"the plan is for another model: its fingerprint is {plan.model.fingerprint} ({plan.model.name}), "
            f"this model's is {found}; plan this model"
        )


def _plan_once(
    source: Source, cluster: Cluster, job: Job, opaque: tuple[str, ...], *, fresh: bool, refresh: bool,
    progress: Progress, budget: profiling.Budget | None,
) -> tuple[Plan, Traced, tuple[Candidate, ...]]:  # fmt: skip
    """The plan, unchecked, the trace that it is of, and what it was chosen among."""
    choice, traces, warnings = candidates(
        source, cluster, job, opaque, fresh=fresh, refresh=refresh, progress=progress, budget=budget, may_derive=True
    )
    found, chosen = planned(choice, traces, cluster, job, refresh=refresh, progress=progress, budget=budget)
    return dataclasses.replace(
        found,
        model=dataclasses.replace(found.model, tracer=chosen.graph.tracer, opaque=opaque),
        warnings=(
            *found.warnings, *warnings, *_batch_statistics(source.model, found), *map(_noted, chosen.graph.notes)
        ),
    ), chosen, choice  # fmt: skip


def _checked(found: Plan, chosen: Traced, opaque: tuple[str, ...], progress: Progress) -> tuple[Check, ...]:
    """The checks of a plan, all its stages standing where the model's weights are, so that nothing is moved."""
    progress("verifying", 0, 1)
    stages = splitting.side_by_side(found, chosen.device)
    checks = _checks(chosen, stages, opaque)
    progress("verifying", 1, 1)
    return checks


def _checks(chosen: Traced, stages: Sequence[StagePlacement], opaque: tuple[str, ...]) -> tuple[Check, ...]:
    """What is known of the split of a traced source; where that is not enough, compared now."""
    known = splitting.checks_known(chosen.source, chosen.graph, stages, has_values=chosen.has_values)
    if known:
        return known
    source, program = chosen.live()
    with training_mode(source.model, program.graph.training):
        return splitting.check_split(source, program, stages, tracer_for(opaque))


def demoted(model: nn.Module, opaque: tuple[str, ...], error: MismatchError) -> tuple[str, ...]:
    """What a trace is not to look into next: the module whose output differs, at last the whole model ("")."""
    path = error.layer.partition("@")[0]
    known = dict(model.named_modules())
    while path and path in opaque:  # what it is handed is wrong already
        path = path.rpartition(".")[0]
    if not path or path not in known or len(opaque) >= MOST_DEMOTIONS:
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
