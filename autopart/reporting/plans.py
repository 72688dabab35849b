"""A plan in words: the verdict first, then what runs where, what it will take, and how good that is."""

from __future__ import annotations

from autopart.reporting.advice import advice_text
from autopart.reporting.generations import generation_text
from autopart.reporting.tables import facts, heading, layer_range, percent, rate, table, times, usd
from autopart.reporting.verifications import checks_text
from autopart.schema.job import Job
from autopart.schema.plan import Least, Plan, Proof, Stage
from autopart.units import format_bytes, format_count, format_seconds

__all__ = ["baseline_rows", "job_line", "plan_text", "prediction_rows", "proof_rows", "sample_of"]

NO_GAP = 5e-5
"""a relative gap that prints as 0.00 %"""


def plan_text(plan: Plan) -> str:
    """Everything about a plan, in the order in which people ask.

    The verdict in one sentence, the stages, the prediction, what simpler ways would give, the proof, what was
    checked, the devices left out, the warnings with what to do, and where the times come from.
    """
    paragraphs = (
        plan.verdict,
        heading(job_line(plan), _stages(plan)),
        heading("Generation", generation_text(plan)),
        heading("Prediction", facts(prediction_rows(plan))),
        heading("Against simpler ways", _baselines(plan)),
        heading("Proof", facts(proof_rows(plan))),
        heading("Checks", checks_text(plan.checks)),
        heading("Left out", "\n".join(f"  {each.device}: {each.reason}" for each in plan.excluded)),
        advice_text(plan),
        heading("Warnings", "\n".join(f"  {each.message}\n    → {each.suggestion}" for each in plan.warnings)),
        heading(f"Times: {plan.origin.profile}", "\n".join(f"  {line}" for line in _origin(plan))),
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def job_line(plan: Plan) -> str:
    """The model and what is done with it, in one line."""
    schedule = plan.schedule
    batch = plan.job.batch
    given = plan.generation
    if given is not None:
        requests, groups = given.requests, f"{given.num_groups} group{'s' if given.num_groups > 1 else ''}"
        return (
            f"{_model(plan)}; generation, {requests.concurrency} requests at once in {groups}, "
            f"{requests.prompt_tokens} tokens of prompt and {requests.new_tokens} new"
        )
    pieces = f"{schedule.num_microbatches} micro-batch{'es' if schedule.num_microbatches > 1 else ''}"
    return (
        f"{_model(plan)}; {_work(plan.job)}, batch {batch} as {pieces} of {batch // schedule.num_microbatches}, "
        f"{schedule.name}"
    )


def _model(plan: Plan) -> str:
    model = plan.model
    return f"{model.name}: {format_count(model.num_parameters)} parameters in {model.num_layers} layers"


def _work(job: Job) -> str:
    if job.mode == "infer":
        return "inference"
    return "training without optimizer" if job.optimizer == "none" else f"training with {job.optimizer}"


def _stages(plan: Plan) -> str:
    headers = ("stage", "device", "layers", "parameters", "memory / cap", "time", "utilisation")
    return table(headers, [_stage_row(stage) for stage in plan.stages], words=(0, 1, 2))


def _stage_row(stage: Stage) -> tuple[str, ...]:
    return (
        str(stage.index),
        ", ".join(stage.devices),
        layer_range(stage.layers),
        format_bytes(stage.parameter_bytes),
        f"{format_bytes(stage.peak_bytes)} / {format_bytes(stage.capacity_bytes)}",
        format_seconds(stage.forward_seconds + stage.backward_seconds),
        percent(stage.utilisation, digits=0),
    )


def prediction_rows(plan: Plan) -> list[tuple[str, str]]:
    """What a step takes and costs, and what its transfers do: names with values."""
    prediction = plan.prediction
    rounds = f", {plan.job.rounds} rounds with the way in" if plan.job.rounds > 1 else ""
    rows = [
        ("step", format_seconds(prediction.step_seconds) + rounds),
        ("throughput", rate(prediction.throughput_per_second, sample_of(plan))),
        ("latency", f"{format_seconds(prediction.latency_seconds)} for one micro-batch, forward"),
        ("bubble", percent(prediction.bubble_fraction)),
    ]
    if prediction.cost_per_million is not None:
        rows.append(("cost", f"{usd(prediction.cost_per_million)} US dollars per million {sample_of(plan)}"))
    return rows + _transfers(plan)


def sample_of(plan: Plan) -> str:
    """What a sample of the job is."""
    return "samples" if plan.generation is None else "tokens"


def _transfers(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    for index in range(len(plan.stages) - 1):
        crossing = [each for each in plan.transfers if each.from_stage == index]
        num_bytes = sum(each.bytes for each in crossing)
        seconds = sum(each.seconds for each in crossing)
        tensors = f"{len(crossing)} tensor{'s' if len(crossing) != 1 else ''}"
        rows.append((
            f"stage {index} → {index + 1}",
            f"{format_bytes(num_bytes)} in {format_seconds(seconds)} per micro-batch ({tensors})",
        ))
    return rows


def _baselines(plan: Plan) -> str:
    rows = baseline_rows(plan)
    compared = "latency, of the plan's" if plan.job.objective == "latency" else "of the plan's"
    return table(("way", "step", compared, "what"), rows, words=(0, 3)) if rows else ""


def baseline_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """The simpler ways: name, step time, ``Baseline.factor``, what it is or why it does not fit."""
    rows: list[tuple[str, str, str, str]] = []
    for each in plan.baselines:
        step = "does not fit" if each.step_seconds is None else format_seconds(each.step_seconds)
        factor = "" if each.factor is None else times(each.factor)
        rows.append((each.name, step, factor, each.description if each.fits else each.reason or each.description))
    return rows


def proof_rows(plan: Plan) -> list[tuple[str, str]]:
    """How good the plan is proven to be: names with values."""
    proof = plan.proof
    gap = percent(proof.gap, digits=2)
    if proof.least is not None:
        return _least_rows(proof, proof.least, gap)
    words = {
        "proven": f"no plan that fits is {f'more than {gap} ' if proof.gap > NO_GAP else ''}faster",
        "feasible": f"not proven to the end: a plan that fits may be up to {gap} faster",
        "unproven-baseline": f"a baseline was asked for: a plan may be up to {gap} faster",
    }
    return [
        ("outcome", words[proof.outcome] + _by_formula(plan)),
        ("objective", format_seconds(proof.objective_seconds)),
        ("bound", f"{format_seconds(proof.bound_seconds)} ({proof.bound})"),
        ("solver", f"{proof.solver}, {format_seconds(proof.solve_seconds)}"),
    ]


def _least_rows(proof: Proof, least: Least, gap: str) -> list[tuple[str, str]]:
    """The same where something else than time was made least."""
    names = {"usd_per_step": "rent of a step", "memory_share": "largest share of a device's memory",
             "devices": "number of devices"}
    value, bound = (
        percent(each, digits=2) if least.quantity == "memory_share"
        else f"{each:.4g}" + (" US dollars" if least.quantity == "usd_per_step" else "")
        for each in (least.value, least.bound)
    )
    words = {
        "proven": "no plan that fits has less" + (f" by more than {gap}" if proof.gap > NO_GAP else ""),
        "feasible": f"not proven to the end: a plan that fits may have up to {gap} less",
        "unproven-baseline": f"a baseline was asked for: a plan may have up to {gap} less",
    }
    return [
        ("outcome", words[proof.outcome]),
        (names[least.quantity], value),
        ("bound", f"{bound} ({proof.bound})"),
        ("solver", f"{proof.solver}, {format_seconds(proof.solve_seconds)}"),
    ]


def _by_formula(plan: Plan) -> str:
    """Says what is proven where the objective is not the simulated step, as it can be in training."""
    step = plan.prediction.step_seconds
    return "" if abs(plan.proof.objective_seconds - step) <= NO_GAP * step else ", by the objective's formula"


def _origin(plan: Plan) -> tuple[str, ...]:
    return plan.origin.bases + plan.origin.links
