"""What explaining a plan takes the model for: a layer's costs on every kind, and what another cut would cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

from autopart.advising import advised
from autopart.errors import InfeasibleError, UsageError
from autopart.modelsource import Source, with_batch
from autopart.progress import Progress, silent
from autopart.schema.alternatives import CutAlternative, LayerTerms, LayerTimes
from autopart.schema.graph import Graph
from autopart.schema.plan import Plan, Stage
from autopart.schema.profile import KindProfile, Profile
from autopart.sizes import candidates, profiled
from autopart.tracecache import traced
from autopart.verbs import plan_source, same_model

__all__ = ["layer_terms", "next_best", "stage_of", "with_advice"]


def stage_of(plan: Plan, layer: str) -> Stage:
    """The stage that runs a layer.

    Raises:
        UsageError: the plan has no layer of this name, or several begin with it.
    """
    found = [
        (name, stage) for stage in plan.stages for name in stage.layers
        if name == layer or name.startswith(f"{layer}.")
    ]
    exact = [stage for name, stage in found if name == layer]
    if exact or len(found) == 1:
        return exact[0] if exact else found[0][1]
    if found:
        raise UsageError(f"{len(found)} layers lie under {layer}: {', '.join(name for name, _ in found[:6])}; give one")
    raise UsageError(f"the plan has no layer {layer!r}; `autopart export PLAN --to csv` lists them")


def layer_terms(plan: Plan, source: Source, layer: str, *, progress: Progress = silent) -> LayerTerms:
    """What one layer costs, on the kind that runs it and on the cluster's others.

    Raises:
        UsageError: there is no such layer, or the plan is of another model.
    """
    same_model(plan, source.model)
    stage = stage_of(plan, layer)
    count = plan.schedule.num_microbatches
    trace = traced(
        with_batch(source, plan.job.batch // count), training=plan.job.mode == "train", opaque=plan.model.opaque
    )
    profile = profiled(trace, plan.cluster, optimizer=plan.job.optimizer, at_once=count > 1, progress=progress)
    meant = next(each for each in (layer, *stage.layers) if each in stage.layers and f"{each}.".startswith(f"{layer}."))
    index = [each.name for each in trace.graph.layers].index(meant)
    return _terms(plan, stage, trace.graph, profile, index)


def _terms(plan: Plan, stage: Stage, graph: Graph, profile: Profile, index: int) -> LayerTerms:
    layer, weights = graph.layers[index], [graph.weights[each] for each in graph.layers[index].weights]
    own = plan.cluster.device(stage.devices[0]).kind
    kinds = sorted(profile.kinds, key=lambda row: row.kind != own)
    inside = [at for at, each in enumerate(graph.layers) if each.name in set(stage.layers)]
    total = sum(_seconds(kinds[0], at) for at in inside)
    return LayerTerms(
        name=layer.name, index=index, stage=stage.index, devices=stage.devices,
        share=_seconds(kinds[0], index) / total if total else 0.0,
        times=tuple(
            LayerTimes(
                kind=row.kind, origin=row.origin, basis=row.basis, forward_seconds=row.forward_seconds[index],
                backward_seconds=row.backward_seconds[index], optimizer_seconds=row.optimizer_seconds[index],
            )
            for row in kinds
        ),
        num_parameters=sum(weight.num_elements for weight in weights if not weight.is_buffer),
        weight_bytes=sum(weight.bytes for weight in weights), saved_bytes=layer.saved_bytes,
        peak_bytes=layer.peak_bytes, flops=layer.flops,
        families=tuple(dict.fromkeys(
            work.family for work in sorted(layer.work, key=lambda work: (-work.flops, work.family))
        )),
        bytes_before=_crossing(graph, index), bytes_after=_crossing(graph, index + 1),
    )


def _seconds(row: KindProfile, index: int) -> float:
    return row.forward_seconds[index] + row.backward_seconds[index]


def _crossing(graph: Graph, boundary: int) -> int | None:
    return sum(value.bytes for value in graph.crossing(boundary)) if boundary in graph.legal_cuts else None


def next_best(
    plan: Plan, source: Source, stages: Sequence[int], *, progress: Progress = silent
) -> tuple[CutAlternative, ...]:
    """For each stage the best plan that does not begin it where the plan does, found by planning again.

    The two layers at the cut must be in one stage then; all other wishes of the job stay.

    Raises:
        UsageError: the plan is of another model.
    """
    same_model(plan, source.model)
    found = []
    for done, index in enumerate(stages):
        progress("planning without a cut", done, len(stages))
        found.append(_without_cut(plan, source, plan.stages[index - 1].layers[-1], plan.stages[index], progress))
    progress("planning without a cut", len(stages), len(stages))
    return tuple(found)


def with_advice(plan: Plan, source: Source, *, progress: Progress = silent) -> Plan:
    """The plan with advice and with what would change it, sought now if it has none.

    Raises:
        UsageError: the plan is of another model.
    """
    same_model(plan, source.model)
    if plan.advice or plan.sensitivity:
        return plan
    choice, _, _ = candidates(
        with_batch(source, plan.job.batch), plan.cluster, plan.job, plan.model.opaque, fresh=False, refresh=False,
        progress=progress, may_derive=True,
    )
    return advised(plan, choice, progress=progress)


def _without_cut(plan: Plan, source: Source, before: str, stage: Stage, progress: Progress) -> CutAlternative:
    after = stage.layers[0]
    asked = {field.name: getattr(plan.job, field.name) for field in dataclasses.fields(plan.job)}
    asked["together"] = (*plan.job.together, (before, after))
    cut = CutAlternative(to_stage=stage.index, after_layer=before, before_layer=after)
    try:
        other = plan_source(source, devices=plan.cluster, verify=False, progress=progress, **asked)
    except InfeasibleError as error:
        return dataclasses.replace(cut, reason=str(error))
    step = other.prediction.step_seconds
    mine = set(_cuts(plan))
    return dataclasses.replace(
        cut, cuts=tuple(each for each in _cuts(other) if each not in mine), step_seconds=step,
        factor=step / plan.prediction.step_seconds,
    )


def _cuts(plan: Plan) -> tuple[str, ...]:
    return tuple(f"{one.layers[-1]} | {other.layers[0]}" for one, other in pairwise(plan.stages))
