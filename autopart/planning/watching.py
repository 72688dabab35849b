"""What to watch of a plan: figures weaker than they look, where the proof falls short, memory that is tight."""

from __future__ import annotations

from autopart.planning.costing.shares import is_divided, part_unknown
from autopart.planning.looped import is_looped
from autopart.planning.searching.optimum import Optimum
from autopart.planning.searching.options import Option
from autopart.planning.waiting import about_waiting
from autopart.schema.device import Cluster
from autopart.schema.job import Job
from autopart.schema.plan import Baseline, PlanWarning, Proof
from autopart.units import format_bytes

__all__ = ["warnings_of"]

MOST_WHOLE = 0.05
"""of a stage's weights, that its devices may all have without a word"""


def warnings_of(
    option: Option, cluster: Cluster, job: Job, optimum: Optimum, proof: Proof, baselines: tuple[Baseline, ...]
) -> tuple[PlanWarning, ...]:
    """What the user should know of the plan."""
    return (
        *_about_figures(option, cluster, job, optimum),
        *_about_proof(job, optimum, proof),
        *about_waiting(option, cluster, job, baselines),
        *_about_memory(option),
    )


def _about_figures(option: Option, cluster: Cluster, job: Job, optimum: Optimum) -> list[PlanWarning]:
    """Where the plan's figures are weaker than they look."""
    found = []
    kinds = {cluster.device(name).kind for name in option.layout.devices}
    estimated = sorted(
        kind.kind for kind in option.candidate.profile.kinds if kind.origin == "estimated" and kind.kind in kinds
    )
    if estimated:
        found.append(PlanWarning(
            code="estimated-profile",
            message=f"times on {', '.join(estimated)} are estimated from data sheets, not measured",
            suggestion="plan again on a machine that has them: what is there is measured",
        ))
    wider = {kind.kind: kind.computes_as for kind in option.candidate.profile.kinds if kind.kind in kinds}
    for kind, pairs in sorted((kind, pairs) for kind, pairs in wider.items() if pairs):
        number = sum(cluster.device(name).kind == kind for name in option.layout.used)
        found.append(PlanWarning(
            code="no-such-dtype",
            message=f"{kind} has no units for {', '.join(narrow for narrow, _ in pairs)}: {number} device"
            f"{'s' if number > 1 else ''} of the plan compute{'' if number > 1 else 's'} in {pairs[0][1]}, "
            "and the times are of that",
            suggestion="--stage-dtype auto computes there in another type; or --dtype float16, which more kinds have, "
            "if the model stands its range (at most 65,504)",
        ))
    found += _about_dtypes(option, cluster)
    found += _about_shares(option)
    if optimum.merged:
        found.append(PlanWarning(
            code="merged-layers",
            message=f"{len(option.candidate.graph.layers)} layers were merged into items; the proof is about those",
            suggestion="trace the model at a coarser level if every cut matters",
        ))
    if job.mode == "infer" and job.schedule not in (None, "gpipe"):
        found.append(PlanWarning(
            code="schedule-ignored", message=f"inference has no backward to interleave: {job.schedule} runs as gpipe",
            suggestion="leave --schedule away for inference",
        ))
    return found


def _about_dtypes(option: Option, cluster: Cluster) -> list[PlanWarning]:
    """What --stage-dtype auto has changed."""
    used = {cluster.device(name).kind for name in option.layout.used}
    chosen = sorted((row.kind, row.dtype) for row in option.candidate.profile.kinds if row.dtype and row.kind in used)
    least = {
        "float16": "values beyond 65,504 overflow there",
        "float32": "activations take twice the bytes, and so do weights (in training beside the model's own: float16 "
        "would need a scaled loss)",
    }
    return [
        PlanWarning(
            code="stage-dtype",
            message=f"{kind} has no units for the model's half type: its stages compute in {dtype}, which changes "
            f"results a little; {least[dtype]}",
            suggestion="`autopart verify` compares results with the unsplit model's; --stage-dtype keep leaves types",
        )
        for kind, dtype in chosen
    ]


def _about_shares(option: Option) -> list[PlanWarning]:
    """What of the weights is not divided where devices share a stage's layers."""
    graph, found = option.candidate.graph, []
    wide = [index for index in range(option.layout.num_stages) if option.layout.way(index).tensor > 1]
    if wide and part_unknown(graph):
        return [PlanWarning(
            code="all-weights-shared",
            message=f"stage {', '.join(map(str, wide))}: every weight is taken to be shared by the stage's devices; "
            "those that a run has to keep whole need more time and memory than planned",
            suggestion="the verdict of `autopart run` names them with their bytes",
        )]
    for index in wide:
        first, last, _ = option.layout.stages[index]
        num = option.layout.way(index).tensor
        used = {weight for layer in graph.layers[first:last] for weight in layer.weights}
        total = sum(graph.weights[weight].bytes for weight in used)
        whole = sum(graph.weights[weight].bytes for weight in used if not is_divided(graph.weights[weight], num))
        if whole > MOST_WHOLE * total:
            found.append(PlanWarning(
                code="weights-kept-whole",
                message=f"stage {index}: of {format_bytes(total)} of weights {format_bytes(whole)} cannot be divided: "
                f"each of its {num} devices has them and does their work, which is counted",
                suggestion="--tensor-parallel 1, or replicas (--data-parallel), if the stage fits",
            ))
    return found


def _about_proof(job: Job, optimum: Optimum, proof: Proof) -> list[PlanWarning]:
    """Where the proof falls short."""
    found = []
    if proof.outcome == "feasible" and optimum.closed and optimum.nodes_merged:
        found.append(PlanWarning(
            code="gap-not-reached",
            message=f"the plan is proven to within {proof.gap:.2%} only: there are many nodes, and the bound takes the "
            "best link of every two kinds for all of theirs",
            suggestion="nothing to do if the gap is small; else plan for fewer nodes, whose links are told apart",
        ))
    elif proof.outcome == "feasible" and optimum.closed:
        found.append(PlanWarning(
            code="beyond-the-model",
            message=f"by the objective that is proven the plan is {proof.gap:.2%} above the bound, "
            "but simulated event by event it is faster than the plan that attains it",
            suggestion="nothing to do: the prediction is the simulation's (see docs/model.md, 'What is proven')",
        ))
    elif proof.outcome == "feasible" and is_looped(job):
        found.append(PlanWarning(
            code="gap-not-reached",
            message=f"placements for --schedule {job.schedule} are searched, not proven; no plan at all is more than "
            f"{proof.gap:.2%} faster",
            suggestion="--schedule 1f1b and gpipe have plans that are proven",
        ))
    elif proof.outcome == "feasible":
        short = f"the plan is proven to within {proof.gap:.2%} only, not {job.gap:.2%}"
        ended = f"the search was ended early; by the bound known then the plan is within {proof.gap:.2%} of the best"
        found.append(PlanWarning(
            code="gap-not-reached", message=short if proof.gap > job.gap else ended,
            suggestion="give a longer --time-limit, or accept a larger --gap",
        ))
    if optimum.remark:
        found.append(PlanWarning(
            code="solver-fallback", message=optimum.remark,
            suggestion="nothing to do if the gap is small; else choose --solver or a longer --time-limit",
        ))
    return found


def _about_memory(option: Option) -> list[PlanWarning]:
    return [
        PlanWarning(
            code="memory-tight",
            message=f"{device} is {cost.memory.total / cost.capacity_bytes:.1%} full at its peak",
            suggestion="give it a lower --max-memory to keep a reserve, or use more micro-batches",
        )
        for cost, device in zip(option.costs, option.layout.devices, strict=True)
        if cost.memory.total > 0.95 * cost.capacity_bytes
    ]
