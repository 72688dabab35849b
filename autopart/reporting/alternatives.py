"""One stage, one layer and the next best cuts in words."""

from __future__ import annotations

from collections.abc import Sequence

from autopart.reporting.explanations import cut_row
from autopart.reporting.memoryterms import memory_rows
from autopart.reporting.tables import facts, flop, heading, layer_range, percent, table
from autopart.schema.alternatives import CutAlternative, LayerTerms
from autopart.schema.explanation import Explanation
from autopart.schema.plan import Plan
from autopart.units import format_bytes, format_count, format_seconds

__all__ = ["alternatives_text", "layer_text", "stage_text"]


def stage_text(explanation: Explanation, plan: Plan, index: int) -> str:
    """Every term of one stage, the cuts at its two ends, and where the figures come from."""
    terms, stage = explanation.stages[index], plan.stages[index]
    num, step = explanation.num_microbatches, explanation.step_seconds
    busy = num * (terms.forward_seconds + terms.backward_seconds) + terms.optimizer_seconds
    bottleneck = explanation.bottleneck == index
    times = facts([
        ("forward", f"{format_seconds(terms.forward_seconds)} a micro-batch"),
        ("backward", f"{format_seconds(terms.backward_seconds)} a micro-batch"),
        ("receive", f"{format_seconds(terms.receive_seconds)} a micro-batch, what crosses the cut before it"),
        ("all", f"{format_seconds(terms.stage_seconds)} a micro-batch: " + (
            "the bottleneck, every other stage waits for it" if bottleneck
            else f"{format_seconds(terms.slack_seconds)} less than the bottleneck, stage {explanation.bottleneck}"
        )),
        ("optimizer", f"{format_seconds(terms.optimizer_seconds)} a step"),
        ("step", f"{num} micro-batches keep it computing {format_seconds(busy)} of {format_seconds(step)}, "
                 f"{percent(busy / step if step else 1.0)}"),
    ])
    ends = [cut for cut in explanation.cuts if index in (cut.from_stage, cut.to_stage)]
    headers = ("cut", "between", "tensors", "bytes", "forward", "backward", "per step")
    memory = facts([
        *memory_rows(terms.memory), ("needed", format_bytes(terms.memory.total)),
        ("cap", f"{format_bytes(terms.capacity_bytes)}{_origin(plan, stage.devices[0])}"),
        ("free", format_bytes(terms.free_bytes)),
    ])
    title = f"Stage {index} on {', '.join(stage.devices)}: {layer_range(stage.layers)}"
    paragraphs = (
        heading(title, times),
        heading("Its cuts", table(headers, [cut_row(cut) for cut in ends], words=(0, 1)) if ends else ""),
        heading("Memory", memory),
        heading(f"Times: {plan.origin.profile}",
                "\n".join(f"  {line}" for line in (*plan.origin.bases, *plan.origin.links))),
    )
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def _origin(plan: Plan, device: str) -> str:
    origin = plan.cluster.device(device).memory_origin
    return f": {origin}" if origin else ""


def layer_text(terms: LayerTerms) -> str:
    """What one layer costs, on its device and on the other kinds."""
    rows = [
        (each.kind, *map(format_seconds, (each.forward_seconds, each.backward_seconds, each.optimizer_seconds)),
         f"{each.origin}: {each.basis}")
        for each in terms.times
    ]
    about = facts([
        ("runs", f"as layer {terms.index}, in stage {terms.stage} on {', '.join(terms.devices)}: "
                 f"{percent(terms.share)} of that stage's time"),
        ("work", f"{flop(terms.flops, 'FLOP')} forward ({', '.join(terms.families) or 'none counted'})"),
        ("parameters", f"{format_count(terms.num_parameters)}, {format_bytes(terms.weight_bytes)} with buffers"),
        ("memory", f"{format_bytes(terms.peak_bytes)} while it runs, {format_bytes(terms.saved_bytes)} saved"),
        ("a cut before", _crossing(terms.bytes_before)),
        ("a cut after", _crossing(terms.bytes_after)),
    ])
    return heading(f"Layer {terms.name}", about) + "\n\n" + table(
        ("kind", "forward", "backward", "optimizer", "where that comes from"), rows, words=(0, 4)
    ) + "\n"


def _crossing(num_bytes: int | None) -> str:
    return "not allowed" if num_bytes is None else f"{format_bytes(num_bytes)} would cross"


def alternatives_text(alternatives: Sequence[CutAlternative]) -> str:
    """What every cut saves: the best plan without it."""
    rows = []
    for each in alternatives:
        instead = each.reason or "; ".join(each.cuts) or "no other cut: fewer stages"
        step = "" if each.step_seconds is None else format_seconds(each.step_seconds)
        rows.append((
            f"{each.to_stage - 1} → {each.to_stage}", f"{each.after_layer} | {each.before_layer}", step,
            "" if each.factor is None else percent(each.factor - 1, signed=True), instead,
        ))
    return heading(
        "Without a cut the best plan is", table(("cut", "between", "step", "slower", "cuts"), rows, words=(0, 1, 4))
    ) + "\n"
