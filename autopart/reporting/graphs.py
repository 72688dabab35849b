"""A model on paper, and its times, in words."""

from __future__ import annotations

from autopart.reporting.tables import facts, flop, heading, table
from autopart.schema.graph import Graph, Layer, Note
from autopart.schema.profile import Profile
from autopart.schema.tracereport import Cut, TraceReport
from autopart.units import format_bytes, format_count, format_seconds

__all__ = ["profile_text", "trace_report", "trace_text"]


def trace_report(graph: Graph) -> TraceReport:
    """The layers of a model, with the sums and with what crosses every legal cut."""
    return TraceReport(
        model=graph.model, fingerprint=graph.fingerprint, tracer=graph.tracer, training=graph.training,
        batch_size=graph.batch_size, num_parameters=graph.num_parameters, parameter_bytes=graph.parameter_bytes,
        flops=graph.flops, saved_bytes=sum(layer.saved_bytes for layer in graph.layers), layers=graph.layers,
        weights=graph.weights, values=graph.values, cuts=tuple(_cut(graph, each) for each in graph.legal_cuts),
        notes=graph.notes,
    )


def trace_text(report: TraceReport) -> str:
    """What was captured and how, the layers with their costs, what crosses every cut, and what there is to know."""
    cuts = {cut.boundary: cut for cut in report.cuts}
    seen: set[int] = set()
    rows = []
    for index, layer in enumerate(report.layers):
        tied = " (tied)" if seen.intersection(layer.weights) else ""
        seen.update(layer.weights)
        rows.append((str(index), layer.name, *_layer_row(report, layer, tied), *_crossing(cuts.get(index))))
    headers = ("layer", "name", "parameters", "weights", "FLOPs", "working", "saved", "cut before", "tensors")
    notes = heading("Notes", "\n".join(map(_note, report.notes)))
    paragraphs = (_summary(report), table(headers, rows, words=(0, 1)), notes)
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def profile_text(profile: Profile, graph: Graph) -> str:
    """Times of every layer on every kind of device, and their sums."""
    headers = ["layer", "name"]
    columns: list[tuple[float, ...]] = []
    for kind in profile.kinds:
        headers.append(f"{kind.kind} forward")
        columns.append(kind.forward_seconds)
        if profile.training:
            headers += [f"{kind.kind} backward", f"{kind.kind} optimizer"]
            columns += [kind.backward_seconds, kind.optimizer_seconds]
    rows = [
        (str(index) + "~" * any(index in kind.unmeasured for kind in profile.kinds), layer.name,
         *(format_seconds(column[index]) for column in columns))
        for index, layer in enumerate(graph.layers)
    ]
    rows.append(("", "sum", *(format_seconds(sum(column)) for column in columns)))
    bases = facts([(kind.kind, f"{kind.origin}: {kind.basis}") for kind in profile.kinds])
    head = f"{graph.model}, times of one micro-batch of {profile.batch_size}"
    if any(kind.unmeasured for kind in profile.kinds):
        head += "; ~: not measured, for want of time, but estimated"
    return f"{head}\n{bases}\n\n{table(headers, rows, words=(0, 1))}\n"


def _cut(graph: Graph, boundary: int) -> Cut:
    crossing = graph.crossing(boundary)
    return Cut(
        boundary=boundary, layer=graph.layers[boundary].name, tensors=tuple(value.name for value in crossing),
        bytes=sum(value.bytes for value in crossing),
        gradient_bytes=sum(value.bytes for value in crossing if value.differentiable) if graph.training else 0,
    )


def _layer_row(report: TraceReport, layer: Layer, tied: str) -> tuple[str, ...]:
    own = [report.weights[each] for each in layer.weights]
    return (
        format_count(sum(weight.num_elements for weight in own if not weight.is_buffer)) + tied,
        format_bytes(sum(weight.bytes for weight in own)),
        flop(layer.flops),
        format_bytes(layer.peak_bytes),
        format_bytes(layer.saved_bytes),
    )


def _summary(report: TraceReport) -> str:
    cuts = f"{len(report.cuts)} place{'' if len(report.cuts) == 1 else 's'} to cut"
    weights = f"{format_count(report.num_parameters)} parameters ({format_bytes(report.parameter_bytes)} with buffers)"
    return (
        f"{report.model}: {weights} in {len(report.layers)} layers, {cuts}\n"
        f"captured by {report.tracer} for {'training' if report.training else 'inference'}, a batch of "
        f"{report.batch_size}: {flop(report.flops)} FLOPs forward"
        + (f", {format_bytes(report.saved_bytes)} saved for backward" if report.training else "")
    )


def _crossing(cut: Cut | None) -> tuple[str, str]:
    return ("", "") if cut is None else (format_bytes(cut.bytes), str(len(cut.tensors)))


def _note(note: Note) -> str:
    where = f"{note.where}: " if note.where else ""
    advice = f"\n    → {note.suggestion}" if note.suggestion else ""
    return f"  {where}{note.message}{advice}"
