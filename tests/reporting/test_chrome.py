from __future__ import annotations

import json

from autopart.reporting import chrome_trace
from autopart.schema.timeline import Event, Timeline
from tests.paper import a_plan


def test_every_event_is_there_in_microseconds() -> None:
    timeline = Timeline(num_stages=2, step_seconds=0.004, events=(
        Event(stage=0, kind="forward", microbatch=0, start_seconds=0.0, end_seconds=0.001),
        Event(stage=1, kind="receive", microbatch=0, start_seconds=0.001, end_seconds=0.002),
        Event(stage=0, kind="receive", microbatch=0, start_seconds=0.002, end_seconds=0.003, gradient=True),
        Event(stage=1, kind="optimizer", microbatch=None, start_seconds=0.003, end_seconds=0.004),
    ))
    document = json.loads(chrome_trace(timeline, a_plan()))
    complete = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in complete] == ["forward 0", "receive 0", "receive gradient 0", "optimizer"]
    assert [(event["tid"], round(event["ts"]), round(event["dur"])) for event in complete] == [
        (0, 0, 1000), (1, 1000, 1000), (0, 2000, 1000), (1, 3000, 1000)
    ]
    both = json.loads(chrome_trace(timeline, a_plan(), timeline.events[:1]))["traceEvents"]
    assert both[: len(document["traceEvents"])] == document["traceEvents"]
    name, *_, one = both[len(document["traceEvents"]) :]
    assert name["args"]["name"].endswith("(measured)")
    assert (one["pid"], one["name"], one["dur"]) == (1, "forward 0", 1000)
    threads = [event["args"]["name"] for event in document["traceEvents"] if event["name"] == "thread_name"]
    assert threads == ["stage 0: rtx-4090:0", "stage 1: rtx-4090:1"]
