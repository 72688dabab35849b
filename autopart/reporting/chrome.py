"""A step, simulated and as it was measured, as a Chrome trace, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Sequence

from autopart.schema.plan import Plan
from autopart.schema.timeline import Event, Timeline

__all__ = ["chrome_trace"]

MICROSECONDS = 1e6


def chrome_trace(timeline: Timeline, plan: Plan, measured: Sequence[Event] = ()) -> str:
    """JSON in the Trace Event Format's object form: one thread per stage, one complete event per act, in microseconds.

    The format is Google's "Trace Event Format", sections "JSON Object Format" and "Complete Events".

    Args:
        timeline: of the simulated step.
        plan: that it is of.
        measured: a step of a run of the plan; shown as a process of its own below the simulated one.
    """
    found = _process(0, "simulated", plan, timeline.events)
    if measured:
        found += _process(1, "measured", plan, measured)
    return json.dumps({"traceEvents": found, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"


def _process(number: int, what: str, plan: Plan, events: Sequence[Event]) -> list[dict[str, object]]:
    return [
        {"name": "process_name", "ph": "M", "pid": number, "args": {"name": f"{plan.model.name} ({what})"}},
        *({"name": "thread_name", "ph": "M", "pid": number, "tid": stage.index,
           "args": {"name": f"stage {stage.index}: {', '.join(stage.devices)}"}} for stage in plan.stages),
        *(_complete(number, event) for event in events),
    ]


def _complete(process: int, event: Event) -> dict[str, object]:
    return {
        "name": _name(event),
        "cat": event.kind,
        "ph": "X",
        "pid": process,
        "tid": event.stage,
        "ts": event.start_seconds * MICROSECONDS,
        "dur": (event.end_seconds - event.start_seconds) * MICROSECONDS,
    }


def _name(event: Event) -> str:
    what = "receive gradient" if event.gradient else event.kind
    return what if event.microbatch is None else f"{what} {event.microbatch}"
