"""A plan as one HTML file that needs nothing else: no script, no network, drawings as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from autopart.reporting.advice import advice_rows, sensitivity_rows, unmoved
from autopart.reporting.drawing import Row, by_stage, in_flight, memory_outline, ticks, timeline_rows
from autopart.reporting.generations import generation_rows
from autopart.reporting.memoryterms import memory_columns
from autopart.reporting.plans import baseline_rows, job_line, prediction_rows, proof_rows, sample_of
from autopart.reporting.tables import layer_range, percent, rate, usd
from autopart.schema.explanation import Explanation
from autopart.schema.measurement import Measurement
from autopart.schema.plan import Plan, Stage
from autopart.schema.timeline import Timeline
from autopart.units import format_bytes, format_seconds

__all__ = ["NUM_COLOURS", "report_html"]

NUM_COLOURS = 8
"""of stages; they repeat, and every stage has its number beside its colour"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A timeline with its heading."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """Consecutive layers of one block, or one layer."""

    label: str
    title: str
    num_layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A stage in the model graph, with what crosses into it."""

    stage: Stage
    chips: tuple[Chip, ...]
    crossing: str
    crossing_title: str
    outline: str
    """of its memory over the step"""


def report_html(
    plan: Plan, timeline: Timeline, explanation: Explanation, *,
    measurement: Measurement | None = None, replay: Timeline | None = None,
) -> str:  # fmt: skip
    """The report of a plan: verdict, stages, devices, timeline, memory over the step, the model, the numbers.

    Args:
        plan: the plan; every text in it is escaped.
        timeline: the simulated step.
        explanation: the plan's terms.
        measurement: a run of it, shown beside.
        replay: the simulated step with the stages' times as measured, drawn under the predicted one.
    """
    ends = [timeline.step_seconds, *([replay.step_seconds] if replay else [])]
    if measurement is not None:
        ends.append(measurement.median_step_seconds)
    span = max(ends) or 1.0
    drawings = [Drawing(heading="Predicted", rows=timeline_rows(timeline, span))]
    if replay is not None:
        drawings.append(Drawing(heading="Stages as measured", rows=timeline_rows(replay, span)))
    return _template().render(
        plan=plan, explanation=explanation, measurement=measurement, drawings=drawings, ticks=ticks(span),
        groups=[
            _group(plan, stage, memory_outline(
                stage, in_flight(events, training=plan.job.mode == "train"), span, timeline.step_seconds
            ))
            for stage, events in zip(plan.stages, by_stage(timeline), strict=True)
        ],
        measured_end=None if measurement is None else round(100 * measurement.median_step_seconds / span, 4),
        job_line=job_line(plan), prediction=prediction_rows(plan), proof=proof_rows(plan),
        baselines=baseline_rows(plan), advice=advice_rows(plan), sensitivity=sensitivity_rows(plan),
        unmoved=unmoved(plan), generation=generation_rows(plan), sample=sample_of(plan),
        css=_css(), num_colours=NUM_COLOURS,
        memory=memory_columns([stage.memory for stage in plan.stages]),
        kinds=[kind for kind in _KINDS if any(event.kind == kind for event in timeline.events)],
    )


_KINDS = ("forward", "backward", "weight", "receive", "optimizer")
_HERE = Path(__file__).parent


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )
    environment.tests["contains_device"] = lambda devices, name: name in devices
    environment.filters |= {
        "bytes": format_bytes, "seconds": format_seconds, "percent": percent, "rate": rate, "layers": layer_range,
        "usd": usd,
    }
    return environment.get_template("report.html.j2")


@cache
def _css() -> str:
    return (_HERE / "report.css").read_text(encoding="utf-8")


def _group(plan: Plan, stage: Stage, outline: str) -> Group:
    crossing = [each for each in plan.transfers if each.to_stage == stage.index]
    sums = f"{format_bytes(sum(t.bytes for t in crossing))} · {format_seconds(sum(t.seconds for t in crossing))}"
    return Group(
        stage=stage,
        chips=tuple(_chip(name, list(group)) for name, group in groupby(stage.layers, key=_block)),
        crossing=sums if crossing else "",
        crossing_title=", ".join(f"{each.tensor} {format_bytes(each.bytes)}" for each in crossing[:20]),
        outline=outline,
    )


def _block(layer: str) -> str:
    """``model.layers.3`` of ``model.layers.3.mlp``: the layers of a block are one chip."""
    pieces = layer.split(".")
    for depth, piece in enumerate(pieces):
        if piece.isdecimal():
            return ".".join(pieces[: depth + 1])
    return layer


def _chip(name: str, layers: list[str]) -> Chip:
    shown = layers if len(layers) <= 12 else [*layers[:11], f"and {len(layers) - 11} more"]
    return Chip(label=name, title=", ".join(shown), num_layers=len(layers))
