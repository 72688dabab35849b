"""A simulated step as a Chrome trace, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import json

from autopart.schema.plan import Plan
from autopart.schema.timeline import Event, Timeline

__all__ = ["chrome_trace"]

MICROSECONDS = 1e6


def chrome_trace(timeline: Timeline, plan: Plan) -> str:
    """JSON in the Trace Event Format's object form: one thread per stage, one complete event per act, in microseconds.

    The format is Google's "Trace Event Format", sections "JSON Object Format" and "Complete Events".
    """
    names = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": f"{plan.model.name} (simulated)"}},
        *({"name": "thread_name", "ph": "M", "pid": 0, "tid": stage.index,
           "args": {"name": f"stage {stage.index}: {', '.join(stage.devices)}"}} for stage in plan.stages),
    ]
    events = [_complete(event) for event in timeline.events]
    return json.dumps({"traceEvents": names + events, "displayTimeUnit": "ms"}, allow_nan=False) + "\n"


def _complete(event: Event) -> dict[str, object]:
    return {
        "name": _name(event),
        "cat": event.kind,
        "ph": "X",
        "pid": 0,
        "tid": event.stage,
        "ts": event.start_seconds * MICROSECONDS,
        "dur": (event.end_seconds - event.start_seconds) * MICROSECONDS,
    }


def _name(event: Event) -> str:
    what = "receive gradient" if event.gradient else event.kind
    return what if event.microbatch is None else f"{what} {event.microbatch}"
