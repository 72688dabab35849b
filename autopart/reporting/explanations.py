"""The numbers behind a plan in words: the sum that makes the step, each stage's terms, what each cut costs."""

from __future__ import annotations

from autopart.reporting.tables import facts, heading, percent, table
from autopart.schema.explanation import CutTerms, Explanation, StageTerms
from autopart.units import format_bytes, format_seconds

__all__ = ["cut_row", "explanation_text"]


def explanation_text(explanation: Explanation) -> str:
    """Where the time of a step and the memory of every device go."""
    paragraphs = (
        heading("Step", _step(explanation)),
        heading("Time of one micro-batch (optimizer: once per step)", _stage_times(explanation)),
        heading("Cuts", _cuts(explanation)),
        heading("Memory", _memory(explanation)),
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _step(explanation: Explanation) -> str:
    more = explanation.num_microbatches - 1
    return facts([
        ("one micro-batch", f"{format_seconds(explanation.one_microbatch_seconds)}: all stages one after another"),
        (f"{more} more", f"{format_seconds(explanation.repeated_seconds)}: each takes {_round(explanation)}"),
        ("once per step", f"{format_seconds(explanation.once_seconds)}: optimizer, the last to end"),
        ("objective", f"{format_seconds(explanation.objective_seconds)}: their sum"),
        ("simulated", f"{format_seconds(explanation.step_seconds)}: the schedule, event by event"),
        ("bubble", f"{percent(explanation.bubble_fraction)} of the devices' time is waiting"),
    ])


def _round(explanation: Explanation) -> str:
    """What a further micro-batch takes."""
    more = max(explanation.num_microbatches - 1, 1)
    if explanation.phases is not None and len(set(explanation.phases)) > 1:
        forward, backward = (_named(explanation.stages[index]) for index in explanation.phases)
        each = format_seconds(explanation.repeated_seconds / more)
        return f"{each}, as long as forward on {forward} and backward on {backward}"
    slowest = explanation.stages[explanation.bottleneck if explanation.phases is None else explanation.phases[0]]
    behind = slowest.behind_seconds
    waits = f", {format_seconds(behind)} of it for the stage behind" if behind > 0 else ""
    return f"{_named(slowest)}, the slowest, {format_seconds(slowest.stage_seconds + behind)}{waits}"


def _named(stage: StageTerms) -> str:
    return f"stage {stage.index} ({', '.join(stage.devices)})"


def _stage_times(explanation: Explanation) -> str:
    headers = ("stage", "device", "layers", "forward", "backward", "receive", "all", "slack", "optimizer")
    rows = [
        (str(stage.index), ", ".join(stage.devices), _layers(stage),
         *map(format_seconds, (stage.forward_seconds, stage.backward_seconds, stage.receive_seconds,
                               stage.stage_seconds)),
         "bottleneck" if stage.index == explanation.bottleneck else format_seconds(stage.slack_seconds),
         format_seconds(stage.optimizer_seconds))
        for stage in explanation.stages
    ]
    return table(headers, rows, words=(0, 1, 2))


def _layers(stage: StageTerms) -> str:
    if stage.num_layers == 1:
        return stage.first_layer
    return f"{stage.first_layer} … {stage.last_layer} ({stage.num_layers})"


def _cuts(explanation: Explanation) -> str:
    headers = ("cut", "between", "tensors", "bytes", "forward", "backward", "per step")
    return table(headers, [cut_row(cut) for cut in explanation.cuts], words=(0, 1)) if explanation.cuts else ""


def cut_row(cut: CutTerms) -> tuple[str, ...]:
    """A cut as a row: which, between which layers, what crosses it and how long that takes."""
    return (
        f"{cut.from_stage} → {cut.to_stage}",
        f"{cut.after_layer} | {cut.before_layer}",
        str(cut.num_tensors),
        format_bytes(cut.bytes),
        format_seconds(cut.forward_seconds),
        format_seconds(cut.backward_seconds),
        format_seconds(cut.per_step_seconds),
    )


def _memory(explanation: Explanation) -> str:
    extra = {
        name: field for name, field in (("fragmentation", "fragmentation"), ("key-value cache", "kv_cache"))
        if any(getattr(stage.memory, field) for stage in explanation.stages)
    }  # fmt: skip
    headers = (
        "stage", "device", "parameters", "gradients", "optimizer", "activations", "outputs, loss", "workspace",
        "communication", *extra, "not at once", "needed", "cap", "free",
    )
    rows = [
        (str(stage.index), ", ".join(stage.devices), *map(format_bytes, (
            stage.memory.parameters, stage.memory.gradients, stage.memory.optimizer, stage.memory.activations,
            stage.memory.loss, stage.memory.workspace, stage.memory.communication,
            *(getattr(stage.memory, each) for each in extra.values()), -stage.memory.not_at_once,
            stage.memory.total, stage.capacity_bytes, stage.free_bytes,
        )))
        for stage in explanation.stages
    ]
    caps = dict.fromkeys(
        f"cap of {', '.join(stage.devices)}: {stage.capacity_origin}" for stage in explanation.stages
        if stage.capacity_origin
    )  # fmt: skip
    return "\n".join((table(headers, rows, words=(0, 1)), *caps))
