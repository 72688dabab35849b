"""Pictures of a plan (what every stage does over a step) and of a comparison (rate against price)."""

from __future__ import annotations

from autopart.reporting.canvas import LETTER_WIDTH, Box, Letters, Picture
from autopart.reporting.drawing import ticks
from autopart.reporting.tables import layer_range, percent, rate
from autopart.schema.comparison import Comparison, DeviceSet
from autopart.schema.plan import Plan
from autopart.schema.timeline import Timeline
from autopart.units import format_bytes, format_seconds

__all__ = ["comparison_picture", "plan_picture"]

WIDTH = 960
NAME_WIDTH = 190
ROW, GAP, HEAD = 26, 8, 58
COLOURS = {
    "forward": "#2f6fb5", "backward": "#d98a2b", "weight": "#b5651d", "receive": "#9aa4b2", "optimizer": "#6b8e5a",
}  # fmt: skip
"""of what a stage does"""
GRID, QUIET, BEST, OTHER = "#e3e7ec", "#57606a", "#2f6fb5", "#b8c4d2"


def plan_picture(plan: Plan, timeline: Timeline) -> Picture:
    """A row per stage with what it does over the simulated step, and under it how full its memory is."""
    span, room = timeline.step_seconds or 1.0, WIDTH - NAME_WIDTH - 30
    height = HEAD + (ROW + GAP + 6) * len(plan.stages) + 46

    def across(seconds: float) -> float:
        return NAME_WIDTH + room * seconds / span

    tops = [HEAD + (ROW + GAP + 6) * stage.index for stage in plan.stages]
    marks = [(NAME_WIDTH + room * share / 100, text) for share, text in ticks(span)]
    boxes = [Box(left=at, top=HEAD - 4, width=0.5, height=height - HEAD - 34, colour=GRID) for at, _ in marks]
    boxes += [
        Box(left=across(event.start_seconds), top=tops[event.stage], height=ROW - 6,
            width=max(0.5, across(event.end_seconds) - across(event.start_seconds) - 0.5),
            colour=COLOURS[event.kind],
            title=f"{event.kind} {format_seconds(event.end_seconds - event.start_seconds)}")
        for event in timeline.events
    ]  # fmt: skip
    letters = [Letters(left=at, top=height - 36, text=text, colour=QUIET, anchor="middle") for at, text in marks]
    for stage, top in zip(plan.stages, tops, strict=True):
        share = stage.peak_bytes / stage.capacity_bytes
        boxes += [
            Box(left=NAME_WIDTH, top=top + ROW - 3, width=room, height=4, colour=GRID),
            Box(left=NAME_WIDTH, top=top + ROW - 3, width=room * min(1.0, share), height=4, colour=QUIET,
                title=f"memory {format_bytes(stage.peak_bytes)} of {format_bytes(stage.capacity_bytes)}"),
        ]  # fmt: skip
        name = f"{stage.index} {', '.join(stage.devices)}"
        letters += [
            Letters(left=8, top=top - 2, text=_short(name)),
            Letters(left=8, top=top + 12, text=_short(f"{layer_range(stage.layers)}"), colour=QUIET),
        ]
    found = sorted({event.kind for event in timeline.events}, key=list(COLOURS).index)
    return _titled(
        f"{plan.model.name}: {format_seconds(plan.prediction.step_seconds)} a step, "
        f"{percent(plan.prediction.bubble_fraction, digits=0)} bubble", [(COLOURS[kind], kind) for kind in found] +
        [(QUIET, "memory at its peak / cap")], height, boxes, letters,
    )  # fmt: skip


def comparison_picture(comparison: Comparison) -> Picture:
    """A row per set that fits: its rate as a bar, what it costs beside; sets that no other is better than are dark."""
    rows = [each for each in comparison.sets if each.fits]
    most = max((each.throughput_per_second or 0.0 for each in rows), default=1.0) or 1.0
    wide = max([NAME_WIDTH, *(LETTER_WIDTH * len(each.name) + 16 for each in rows)])
    wide = min(wide, 360)
    room, what = WIDTH - wide - 330, "tokens" if comparison.requests else "samples"
    boxes, letters = [], []
    for index, each in enumerate(rows):
        top, length = HEAD + (ROW + GAP) * index, room * (each.throughput_per_second or 0.0) / most
        boxes.append(Box(
            left=wide, top=top, width=max(1.0, length), height=ROW - 6, colour=BEST if each.pareto else OTHER,
            title=each.bottleneck,
        ))
        letters += [
            Letters(left=8, top=top + 3, text=_short(each.name, wide)),
            Letters(left=wide + length + 6, top=top + 3, text=_figures(each, what), colour=QUIET),
        ]
    number = len(comparison.sets) - len(rows)
    title = f"{comparison.model}: {what} a second" + (f"; on {number} more sets nothing fits" if number else "")
    return _titled(
        title, [(BEST, "no other set is better"), (OTHER, "another is")], HEAD + (ROW + GAP) * len(rows) + 12, boxes,
        letters,
    )


def _figures(each: DeviceSet, what: str) -> str:
    text = rate(each.throughput_per_second or 0.0, what)
    if each.cost_per_million is not None:
        text += f", {each.cost_per_million:.3g} $/million"
    return text


def _short(text: str, width: int = NAME_WIDTH) -> str:
    most = (width - 12) // LETTER_WIDTH
    return text if len(text) <= most else text[: most - 1] + "…"


def _titled(
    title: str, legend: list[tuple[str, str]], height: int, boxes: list[Box], letters: list[Letters]
) -> Picture:
    at = 8.0
    words = [Letters(left=8, top=6, text=_short(title, WIDTH))]
    marks = []
    for colour, word in legend:
        marks.append(Box(left=at, top=30, width=10, height=10, colour=colour))
        words.append(Letters(left=at + 15, top=28, text=word, colour=QUIET))
        at += 15 + LETTER_WIDTH * len(word) + 18
    return Picture(width=WIDTH, height=height, boxes=(*marks, *boxes), letters=(*words, *letters))
