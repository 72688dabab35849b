"""The verbs.  Each hands data from room to room: tracing, profiling, planning, splitting, running."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from autopart import planning, splitting
from autopart.comparing import compare_source, plan_top_source
from autopart.errors import UsageError
from autopart.modelsource import Source, with_batch
from autopart.modelsource import load as load_source
from autopart.profiling import devices_here, kind, kinds, own_kinds
from autopart.program import Program
from autopart.progress import Progress, silent
from autopart.restoring import training_mode
from autopart.runs import run_source
from autopart.schema.alternatives import Alternative
from autopart.schema.codec import CodecName
from autopart.schema.comparison import Comparison
from autopart.schema.device import Cluster
from autopart.schema.plan import Check, Plan
from autopart.schema.training import Progress as TrainingProgress
from autopart.schema.training import Recipe, Training
from autopart.schema.verification import Verification
from autopart.splitting import SplitModule
from autopart.verbs import (
    DeviceSpec,
    check_source,
    plan_source,
    profile_source,
    same_model,
    trace_source,
    tracer_for,
    verify_source,
)

if TYPE_CHECKING:
    from autopart import running

__all__ = [
    "compare", "compare_source", "devices_here", "fit", "kind", "kinds", "load_checkpoint", "load_source",
    "own_kinds", "pipeline", "plan", "plan_source", "plan_top", "plan_top_source", "profile_source", "run_source",
    "split", "trace", "trace_source", "train_source", "verify", "verify_source",
]  # fmt: skip


def trace(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    training: bool = False, name: str = "",
) -> Program:  # fmt: skip
    """The model as layers with their costs; nothing is allocated, the model is left as it was.

    Raises:
        TracingError: the model cannot be captured.
    """
    from autopart import tracing  # takes as long to import as torch

    return tracing.trace(model, args, kwargs, training=training, name=name)


def plan(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, verify: bool = True, progress: Progress = silent, **words: Any,
) -> Plan:  # fmt: skip
    """The fastest plan that fits, with its proof; see ``plan_source`` for the words (in training optimizer="adamw").

    >>> layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> found = plan(layers, (torch.rand(8, 64),), devices="2xt4")
    >>> sum(len(stage.layers) for stage in found.stages)
    2
    """
    return plan_source(
        _source(model, args, kwargs), devices=devices, max_memory=max_memory, cluster_file=cluster_file,
        refresh=refresh, verify=verify, progress=progress, **words,
    )  # fmt: skip


def plan_top(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    num_plans: int = 3, devices: DeviceSpec = None, max_memory: Sequence[str] = (), cluster_file: Path | None = None,
    refresh: bool = False, verify: bool = True, progress: Progress = silent, **words: Any,
) -> tuple[Alternative, ...]:  # fmt: skip
    """The best plan and really different ones beside it, each with what it trades; words and errors as for ``plan``.

    >>> layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> found = plan_top(layers, (torch.rand(8, 64),), devices="2xt4,l4", num_plans=2)
    >>> [len(each.plan.stages) for each in found][0]
    1
    """
    return plan_top_source(
        _source(model, args, kwargs), num_plans, devices=devices, max_memory=max_memory, cluster_file=cluster_file,
        refresh=refresh, verify=verify, progress=progress, **words,
    )  # fmt: skip


def compare(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    devices: Sequence[str | Cluster] = (), catalogue: str = "", most_sets: int = 24, max_memory: Sequence[str] = (),
    refresh: bool = False, progress: Progress = silent, **words: Any,
) -> Comparison:  # fmt: skip
    """The best plan for each of several sets of devices, side by side; see ``compare_source`` for the words and errors.

    >>> layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> found = compare(layers, (torch.rand(8, 64),), devices=["1xt4", "2xt4"])
    >>> sorted(each.name for each in found.sets)
    ['1xt4', '2xt4']
    """
    return compare_source(
        _source(model, args, kwargs), devices, catalogue=catalogue, most_sets=most_sets, max_memory=max_memory,
        refresh=refresh, progress=progress, **words,
    )  # fmt: skip


def split(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan | None = None, devices: DeviceSpec = None, verify: bool = True, compress: CodecName = "none",
    **words: Any,
) -> SplitModule:  # fmt: skip
    """The model over several devices as an ``nn.Module``: the same call, the same ``state_dict``.

    Its parameters are the model's own objects, moved to their devices in place as ``model.to`` would.  Unless
    ``verify`` is False, the split is compared with the unsplit model first; a warning says what cannot be.  With
    ``compress`` (fp16, bf16, int8, topk) what goes from stage to stage is encoded, which the comparison leaves out.

    Raises:
        MismatchError: the split does not do what the model does.
    """
    checked = plan is None
    if plan is None:
        plan = globals()["plan"](model, args, kwargs, devices=devices, verify=verify, **words)
    same_model(plan, model)
    stages = splitting.stage_placements(plan)
    if verify:
        source = _source(model, args, kwargs)
        _tell_skipped(plan.checks if checked else _checks(plan, source, stages))
    return SplitModule(model, stages, tracer_for(plan.model.opaque), compress=compress)


def pipeline(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan, loss_fn: Callable[..., torch.Tensor] | None = None, optimizer: str | None = None, verify: bool = True,
    compress: CodecName | None = None, compress_gradients: Literal["none", "fp16", "bf16"] = "none",
    prefetch: int | None = None,
) -> running.LocalPipeline | running.DistributedPipeline:  # fmt: skip
    """What steps a plan: one rank of it under torchrun, else all of it in this process.

    ``args`` and ``kwargs`` are of a whole batch; ``step`` takes the same.  Unless ``verify`` is False, the plan's
    stages are compared with the unsplit model first, all of them where its weights are.  ``compress`` (none, fp16,
    bf16, int8, topk) encodes what goes from device to device; None: as planned.  Under torchrun ``compress_gradients``
    encodes the gradients of replicas, and receives are posted ``prefetch`` computations early; None: where it pays.

    Raises:
        MismatchError: the stages do not do what the model does.
    """
    _tell_optimizer(plan, optimizer)
    program = _program(plan, _source(model, args, kwargs), verify)
    from autopart import running  # planning does without

    return running.pipeline(
        program, planning.hidden(plan, prefetch), loss_fn=loss_fn, optimizer=optimizer, compress=compress,
        compress_gradients=compress_gradients,
    )  # fmt: skip


def fit(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan, data: Any, loss_fn: Callable[..., torch.Tensor] | None = None, targets: tuple[Any, ...] | None = None,
    optimizer: str | Callable[..., torch.optim.Optimizer] | None = None, checkpoints: str | Path | None = None,
    resume: bool = False, metrics: str | Path | None = None, verify: bool = True, progress: Progress = silent,
    **words: Any,
) -> Training:  # fmt: skip
    """Train a model by a plan: one rank of it under torchrun, else all of it in this process.

    ``args`` and ``kwargs`` are an example of a whole batch, ``targets`` of its targets.  ``words`` are those of
    ``Recipe``: ``steps``, ``learning_rate``, ``clip``, ``precision``, ...; ``data`` what docs/training.md says.

    Raises:
        UsageError: a word is wrong, the plan is for inference, or the data do not fit the model.
        RunError: the loss is not finite, or a checkpoint cannot be written.
    """
    from autopart import training

    _tell_optimizer(plan, optimizer)
    named = optimizer if isinstance(optimizer, str) else plan.job.optimizer if optimizer is None else "sgd"
    source = dataclasses.replace(_source(model, args, kwargs), loss_fn=loss_fn, targets=targets)
    program = _program(plan, source, verify)
    return training.fit(
        program, plan, with_batch(source, plan.job.batch), data, _recipe(words | {"optimizer": named}),
        optimizer=optimizer if callable(optimizer) else None, checkpoint_directory=checkpoints, resume=resume,
        metrics_file=metrics, progress=progress,
    )  # fmt: skip


def train_source(
    plan: Plan, source_text: str, data: str, *, checkpoints: Path | None = None, resume: bool = False,
    metrics: Path | None = None, prefetch: int | None = None, elastic: bool = False, most_recoveries: int = 10,
    returns: int = 0, hang_seconds: float = 30.0, progress: Progress = silent,
    told: Callable[[str], None] = lambda _: None, **words: Any,
) -> Training:  # fmt: skip
    """Train a model source by a plan, one process per device, watched; with ``elastic`` it goes on after failures.

    Receives are posted ``prefetch`` computations early; None: where the plan's links make it pay.

    Raises:
        UsageError: a word is wrong, or the plan is of another model.
        RankError: a process failed; the message is that of the first.
        InfeasibleError: what is left after a failure cannot hold the model.
    """
    from autopart import training

    splitting.stage_placements(plan)
    same_model(plan, load_source(source_text, dtype=plan.job.dtype).model)
    recipe = _recipe({"optimizer": plan.job.optimizer} | words)
    order = training.Order(
        source=source_text, data=data, recipe=recipe, checkpoint_directory=checkpoints, resume=resume,
        metrics_file=metrics, hang_seconds=hang_seconds, prefetch=prefetch,
    )
    limits = training.Elastic(most_recoveries=most_recoveries, returns=returns) if elastic else None
    hides = planning.hidden(plan, prefetch)
    if note := planning.hiding_note(plan, hides):
        told(note)
    return training.train(hides, order, elastic=limits, progress=progress, told=told)


def load_checkpoint(
    directory: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> TrainingProgress:
    """Fill a plain model, and its optimizer, from a checkpoint of ``fit`` or ``autopart train``, under any plan.

    Raises:
        FileFormatError: there is no checkpoint, or it is of another model or optimizer.
    """
    from autopart import training

    return training.load_checkpoint(directory, model, optimizer)


def verify(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *,
    plan: Plan, loss_fn: Callable[..., torch.Tensor] | None = None, targets: tuple[Any, ...] | None = None,
) -> Verification:  # fmt: skip
    """Compare a plan's split of the model with the unsplit model; see ``verify_source``."""
    source = dataclasses.replace(_source(model, args, kwargs), loss_fn=loss_fn, targets=targets)
    return verify_source(plan, source)


def _program(plan: Plan, source: Source, verify: bool) -> Program:
    """The model at the size of the plan's micro-batch, its stages compared with it first if that is wanted."""
    same_model(plan, source.model)
    training = plan.job.mode == "train"
    from autopart import running

    piece = with_batch(source, running.samples_per_replica(plan, running.own_process(plan)))
    program = trace_source(piece, training=training, opaque=plan.model.opaque)
    if verify:
        stages = splitting.side_by_side(plan, program.device)
        with training_mode(source.model, training):
            _tell_skipped(splitting.check_split(piece, program, stages, tracer_for(plan.model.opaque)))
    return program


def _recipe(words: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe(**words)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{error}; see `autopart train --help`") from error


def _checks(plan: Plan, source: Source, stages: Sequence[splitting.StagePlacement]) -> tuple[Check, ...]:
    if not source.args and not source.kwargs:
        return (Check(name="values", outcome="skipped", detail="no example inputs were given"),)
    return check_source(plan, source, stages)


def _tell_skipped(checks: Sequence[Check]) -> None:
    for each in checks:
        if each.outcome == "skipped":
            warnings.warn(f"autopart could not check the split's {each.name}: {each.detail}", stacklevel=3)


def _tell_optimizer(plan: Plan, optimizer: object) -> None:
    """Warns where an optimizer keeps states that the plan's memory lacks; of a function that is not known."""
    planned, known = plan.job.optimizer, planning.NUM_OPTIMIZER_STATES
    keeps = next((known[each] for each in known if each == optimizer), 1 if callable(optimizer) else 0)
    if keeps > known[planned]:
        counted = "no optimizer" if planned == "none" else planned
        warnings.warn(f"autopart: the plan's memory is for {counted}; plan with the one that trains", stacklevel=3)


def _source(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Source:
    return Source(model=model, args=args, kwargs=dict(kwargs or {}), name=type(model).__name__, text="")
