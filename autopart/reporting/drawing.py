"""The shapes of the HTML report: bars of the timeline and the memory of every stage over a step.

Positions are percentages of the drawing's width, so that one drawing suits a phone and a desk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from autopart.schema.plan import Stage
from autopart.schema.timeline import Event, EventKind, Timeline
from autopart.units import format_seconds

__all__ = ["MOST_BARS", "Bar", "Path", "Row", "by_stage", "in_flight", "memory_outline", "ticks", "timeline_rows"]

MOST_BARS = 3000
"""of a timeline; with more, the events of a stage and kind are one path without titles of their own"""
MOST_POINTS = 300
"""of a memory outline; with more, the largest of each column is drawn"""
PATH_WIDTH = 4_000
"""units in which paths are drawn: whole numbers are short"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One event."""

    kind: str
    left: float
    width: float
    label: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """All events of one kind in a stage as a thick, broken line, in units of which the width has ``PATH_WIDTH``."""

    kind: str
    outline: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a stage does over a step: bars, or paths if there are too many of them."""

    stage: int
    bars: tuple[Bar, ...]
    paths: tuple[Path, ...]


def timeline_rows(timeline: Timeline, span_seconds: float) -> tuple[Row, ...]:
    """A row per stage; ``span_seconds`` is the width of the drawing."""
    many = len(timeline.events) > MOST_BARS
    return tuple(
        Row(
            stage=stage, bars=() if many else tuple(_bar(event, span_seconds) for event in events),
            paths=_paths(events, span_seconds) if many else (),
        )
        for stage, events in enumerate(by_stage(timeline))
    )


def by_stage(timeline: Timeline) -> list[list[Event]]:
    """The events of every stage, by start."""
    found: list[list[Event]] = [[] for _ in range(timeline.num_stages)]
    for event in timeline.events:
        found[event.stage].append(event)
    return found


def _bar(event: Event, span_seconds: float) -> Bar:
    seconds = event.end_seconds - event.start_seconds
    what = "receive gradient" if event.gradient else event.kind
    number = "" if event.microbatch is None else str(event.microbatch)
    return Bar(
        kind=event.kind, left=_percent(event.start_seconds, span_seconds), width=_percent(seconds, span_seconds),
        label=number if event.kind in ("forward", "backward") and seconds > 0.02 * span_seconds else "",
        title=f"stage {event.stage}: {what} {number}".rstrip()
        + f", {format_seconds(seconds)} from {format_seconds(event.start_seconds)}",
    )


def _paths(events: Sequence[Event], span_seconds: float) -> tuple[Path, ...]:
    ordered = sorted(events, key=lambda event: event.kind)
    return tuple(_path(kind, list(group), span_seconds) for kind, group in groupby(ordered, key=lambda each: each.kind))


def _path(kind: EventKind, events: Sequence[Event], span_seconds: float) -> Path:
    """Bars that touch become one."""
    runs: list[tuple[int, int]] = []
    for event in sorted(events, key=lambda each: each.start_seconds):
        left, right = (round(PATH_WIDTH * at / span_seconds) for at in (event.start_seconds, event.end_seconds))
        if runs and left <= runs[-1][1]:
            left, right = runs[-1][0], max(right, runs.pop()[1])
        runs.append((left, right))
    seconds = sum(event.end_seconds - event.start_seconds for event in events)
    ends = [0, *(right for _, right in runs)]
    moves = (f"m{left - end} 0h{right - left}" for end, (left, right) in zip(ends, runs, strict=False))
    return Path(
        kind=kind, outline=f"M0 5{''.join(moves)}",
        title=f"stage {events[0].stage}: {len(events)} x {kind}, {format_seconds(seconds)} in all",
    )


def in_flight(events: Sequence[Event], *, training: bool) -> tuple[tuple[float, int], ...]:
    """When the number of micro-batches changes whose activations a stage keeps, and to what, from its events.

    A forward adds one at its start; a backward (with its weights' half, where that comes apart) takes one away at its
    end.  In inference all stay until the step ends.
    """
    changes = [(event.start_seconds, 1) for event in events if event.kind == "forward"]
    if training:
        last: dict[int | None, float] = {}
        for event in events:
            if event.kind in ("backward", "weight"):
                last[event.microbatch] = max(last.get(event.microbatch, 0.0), event.end_seconds)
        changes += [(end, -1) for end in last.values()]
    number, found = 0, []
    for at, change in sorted(changes):
        number += change
        found.append((at, number))
    return tuple(found)


def memory_outline(stage: Stage, changes: Sequence[tuple[float, int]], span_seconds: float, end_seconds: float) -> str:
    """The stage's memory over a step as an SVG path, ``PATH_WIDTH`` wide and 100 high, 100 being the cap.

    What does not belong to a micro-batch is drawn as if it were there all the time.
    """
    most = max((number for _, number in changes), default=1) or 1
    varying = min(stage.memory.activations + stage.memory.loss, stage.peak_bytes)
    fixed = stage.peak_bytes - varying
    points = [(0.0, float(fixed))]
    points += [(at, fixed + varying * number / most) for at, number in changes]
    if len(points) > MOST_POINTS:
        points = _columns(points, end_seconds)
    scale = PATH_WIDTH / span_seconds
    pieces = [f"M0 100V{_height(points[0][1], stage)}"]
    pieces += [f"H{round(at * scale)}V{_height(num_bytes, stage)}" for at, num_bytes in points[1:]]
    return "".join((*pieces, f"H{round(end_seconds * scale)}V100z"))


def _height(num_bytes: float, stage: Stage) -> str:
    return f"{100 - 100 * min(1.0, num_bytes / stage.capacity_bytes):.1f}".removesuffix(".0")


def _columns(points: Sequence[tuple[float, float]], end_seconds: float) -> list[tuple[float, float]]:
    """The largest of every column, so that no peak is lost."""
    width = end_seconds / MOST_POINTS
    found: dict[int, float] = {}
    level = 0.0
    for at, num_bytes in points:
        column = min(int(at / width), MOST_POINTS - 1)
        found[column] = max(found.get(column, level), num_bytes)
        level = num_bytes
    return [(column * width, num_bytes) for column, num_bytes in sorted(found.items())]


def ticks(span_seconds: float) -> tuple[tuple[float, str], ...]:
    """Places of the time axis with what stands there."""
    return tuple((25.0 * at, format_seconds(span_seconds * at / 4)) for at in range(5))


def _percent(seconds: float, span_seconds: float) -> float:
    return round(100 * seconds / span_seconds, 4)
